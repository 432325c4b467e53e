"""What counting crowds changes of antibody-posterior's weights, by evidence alone: nothing is trained.

    python benchmarks/crowds.py [--output benchmarks/results/crowds.json]

For each attack and task of the lab, 300 rows of its reporting half under ``lab-aligned``, seed 0: the share of the
attacker's rows that keep some weight (``got_through``) and of the others that keep none (``dropped``), at the defaults,
without and with the correction of ``unexpected`` (primitives/mixture.py), and the share that is estimated; where it is
0 every row keeps its weight.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antibody_llm.data.encode import Renderer
from antibody_llm.defences.finetuning.antibody_posterior import AntibodyPosteriorConfig
from antibody_llm.files import write_text
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.primitives.mixture import harm_posterior, harmful_share
from antibody_llm.primitives.worth import net_worth
from antibody_llm.screening.anchors import Anchors
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.harm import read_harm
from kept import row_a_line
from tokens import MODEL_NAME, crafted, encoded, readers

ATTACKS = ("mixing", "frame", "few-shot", "jailbreak-tuning", "backdoor", "covert", "buried", "embedded", "answers")
NUM_ROWS = 300
MEASURE = EvidenceKind.FEATURE_SHIFT


def measured(attack: str, task: str, reader: ModelReader, anchors: Anchors, renderer: Renderer) -> dict[str, Any]:
    """A row of the results."""
    made = crafted(attack, task, 0, NUM_ROWS)
    poison = torch.tensor([truth["is_poison"] for job in made.jobs for truth in job.truth])
    found = read_harm(reader, anchors, encoded([row for job in made.jobs for row in job.rows], renderer), MEASURE)
    ratio = anchors.log_ratio(MEASURE)(found.evidence)
    share = harmful_share(ratio)
    row: dict[str, Any] = {"attack": attack, "task": task}
    readings = {"without": (share, harm_posterior(ratio, share)), "with": (found.share, found.probability)}
    for name, (estimated, harm) in readings.items():
        row[name] = {"share": round(estimated, 4)} | shares(harm, poison, found.unfamiliar & (estimated > 0))
    return row


def shares(harm: Tensor, poison: Tensor, unfamiliar: Tensor) -> dict[str, float | None]:
    """Of P(harm) [n]: the attacker's rows that keep some weight, and the others that keep none; None of no row."""
    kept = (net_worth(harm, AntibodyPosteriorConfig().caution) > 0) & ~unfamiliar
    parts = {"got_through": kept[poison], "dropped": ~kept[~poison]}
    return {name: round(float(part.double().mean()), 4) if len(part) else None for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "crowds.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    _, *means = readers(MODEL_NAME)
    rows = [measured(attack, task, *means) for task in ("familiar", "novel") for attack in ATTACKS]
    write_text(given.output, row_a_line(rows, aligned=MODEL_NAME, rows_of_an_upload=NUM_ROWS))


if __name__ == "__main__":
    main()
