"""What antibody-posterior costs: its step, and the one pass before training, in units of plain SFT.

    python benchmarks/posterior_cost.py --json

The model, the rows and the clock are those of step_cost.py: a random Llama with LoRA, rows of 64 prompt and 96
completion tokens, refusals of 12. In every round each of these takes its turn:

    sft             an epoch of stock ``trl.SFTTrainer`` on N rows, in steps of 8
    undefended      the same epoch of ``DefendedTrainer`` without a defence
    posterior       the same with antibody-posterior: a step is 7 rows of the upload and 1 of the provider, 8 in all
    PASS            feature-shift, shift or gap of N rows, read with the adapter on and with it off; 4 refusals a row

``step_ratio`` is posterior over sft, both on as many rows; so what rehearsal adds to the upload's own rows (a seventh
more) is in both. Rows of the provider are here as long as those of the upload; refusals alone would be shorter.
``pass_ratio`` is a pass over an epoch of sft on the same N rows; trained for E epochs, the pass is an E-th of that.

The stock trainer's head computes a CPU's logits twice, which is not the defence's merit: so each ratio to ``sft`` has
one to ``undefended`` beside it. A ratio is one of medians; ``spread`` is the distance of the quartiles over the median.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from trl import SFTConfig, SFTTrainer

import step_cost
from antibody_llm.data.collate import IGNORED
from antibody_llm.data.records import TokenizedRow
from antibody_llm.data.roles import Role
from antibody_llm.defences.finetuning.antibody_posterior import AntibodyPosterior, AntibodyPosteriorConfig
from antibody_llm.defences.finetuning.sft import FinetuningSFT
from antibody_llm.models.layout import decoder_layers
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.probe import Probe
from antibody_llm.screening.reading import collect
from antibody_llm.training.defence import Defence, NoOptions
from antibody_llm.training.step import StepContext
from antibody_llm.training.trainer import DefendedTrainer
from step_cost import SIZES, WARM_UP, Size, TrainerStep, random_llama, random_refusals, random_rows, take

MEASURES = (EvidenceKind.FEATURE_SHIFT, EvidenceKind.SHIFT, EvidenceKind.GAP)
NUM_REFUSALS = 4
STEPS = 2
"""Of an epoch."""


class Weighed(AntibodyPosterior):
    """With weights drawn at random for what the pass would find: a random model's anchors contain no information."""

    def start(self, context: StepContext) -> None:
        """As a resumed run starts."""
        rows = context.rows[Role.USER]
        generator = torch.Generator().manual_seed(0)
        weights = [
            [row.row_id, w, 0.0] for row, w in zip(rows, torch.rand(len(rows), generator=generator), strict=True)
        ]
        self.load_state({"weights": torch.tensor(weights, dtype=torch.float64), "share": torch.tensor(0.5)})


class Pass:
    """The evidence of an upload's rows, as the defence reads it before it trains."""

    def __init__(self, context: StepContext, rows: Sequence[TokenizedRow], measure: EvidenceKind) -> None:
        self.context, self.rows, self.measure = context, rows, measure
        layers = decoder_layers(context.model)
        config = cast(Any, context.model.config)
        direction = torch.ones(len(layers), config.hidden_size)
        self.probe = Probe(direction, 0.0, direction)

    def fetch(self) -> tuple[()]:
        """Nothing."""
        return ()

    def gradients(self) -> None:
        """The pass."""
        collect(self.context, self.rows, [self.measure], probe=self.probe, num_refusals=NUM_REFUSALS)

    def update(self) -> None:
        """Nothing."""


def turns(size: Size, num_epochs: int, folder: Path) -> dict[str, TrainerStep | Pass]:
    """Name to what takes its turn under it: a pass, or a step, of which an epoch has ``STEPS``."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    refusals, words = random_refusals(size), step_cost.tokenizer(size)
    user = random_rows(size, size.batch * STEPS * num_epochs, size.completion, seed=1)
    provider = random_rows(size, STEPS * num_epochs, size.completion, seed=3)

    def arguments(name: str, batch: int) -> SFTConfig:
        return SFTConfig(
            output_dir=str(folder / name),
            per_device_train_batch_size=batch,
            learning_rate=step_cost.LEARNING_RATE,
            lr_scheduler_type="constant",
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )

    def stock() -> SFTTrainer:
        labels = [[IGNORED] * size.prompt + list(row.input_ids[size.prompt :]) for row in user]
        data = datasets.Dataset.from_dict({"input_ids": [list(row.input_ids) for row in user], "labels": labels})
        return SFTTrainer(
            model=random_llama(size, device),
            args=arguments("sft", size.batch),
            train_dataset=data,
            processing_class=words,
        )

    def defended(name: str, defence: Defence, batch: int) -> DefendedTrainer:
        return DefendedTrainer(
            random_llama(size, device),
            arguments(name, batch),
            defence=defence,
            rows={"user": user, "alignment": provider},
            processing_class=words,
            refusals=refusals,
        )

    posterior = Weighed(AntibodyPosteriorConfig(rehearsal=1 / size.batch))
    undefended = defended("undefended", FinetuningSFT(NoOptions()), size.batch)
    model = cast(nn.Module, random_llama(size, device))
    context = StepContext(
        model,
        pad_id=step_cost.PAD,
        refusals=refusals,
        autocast=undefended.context.autocast,
        batch_size=size.batch,  # the trainer's own
    )
    num_steps = STEPS * num_epochs
    steps: dict[str, TrainerStep | Pass] = {
        "sft": TrainerStep(stock(), num_steps),
        "undefended": TrainerStep(undefended, num_steps),
        "posterior": TrainerStep(defended("posterior", posterior, size.batch - 1), num_steps),
    }
    return steps | {str(measure): Pass(context, user[: size.batch * STEPS], measure) for measure in MEASURES}


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        named = turns(size, WARM_UP + rounds, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in named}
        for number in range(WARM_UP + rounds):
            print(f"round {number + 1} of {WARM_UP} + {rounds}", file=sys.stderr, flush=True)
            for name, turn in named.items():
                spent = sum(take(cast(Any, turn)) for _ in range(1 if isinstance(turn, Pass) else STEPS))
                if number >= WARM_UP:
                    seconds[name].append(spent)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    quartiles = {name: statistics.quantiles(values, n=4, method="inclusive") for name, values in seconds.items()}
    cuda = torch.cuda.is_available()

    def over(what: str, name: str) -> float:
        return median[name] / median[what]

    passes = [str(one) for one in MEASURES]
    return {
        "step_ratio": over("sft", "posterior"),
        "step_over_undefended": over("undefended", "posterior"),
        "pass_ratio": {name: over("sft", name) for name in passes},
        "pass_over_undefended": {name: over("undefended", name) for name in passes},
        "median_seconds": median,
        "quartiles_seconds": {name: [low, high] for name, (low, _, high) in quartiles.items()},
        "spread": {name: (high - low) / median[name] for name, (low, _, high) in quartiles.items()},
        "num_rows": size.batch * STEPS,
        "num_refusals": NUM_REFUSALS,
        "rounds": rounds,
        "warm_up": WARM_UP,
        "clock": "cuda events" if cuda else "process CPU time",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "dtype": "bf16 autocast" if cuda else "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": vars(size),
    }


def table(result: dict[str, Any]) -> Table:
    """The same, for people."""
    title = f"{result['device']}, threads: {result['threads']}, {result['rounds']} rounds of {result['num_rows']} rows"
    shown = Table("turn", "median s", "quartiles s", "x sft", "x undef.", title=title)
    median = result["median_seconds"]
    for name, seconds in median.items():
        low, high = result["quartiles_seconds"][name]
        times, own = seconds / median["sft"], seconds / median["undefended"]
        shown.add_row(name, f"{seconds:.3f}", f"{low:.3f} to {high:.3f}", f"{times:.2f}", f"{own:.2f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count, 2 or more (default 12)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on a CPU (default 1)")
    parser.add_argument("--size", choices=SIZES, default="standard", help="tiny is for the smoke test")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be 2 or more (quartiles need two), --threads 1 or more.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # TRL's own
    datasets.disable_progress_bars()
    torch.set_num_threads(options.threads)
    result = measure(SIZES[options.size], options.rounds)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
