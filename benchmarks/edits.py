"""The effect of harmless edits on a screening, before and after rows unlike every anchor were recognised.

    python benchmarks/edits.py [--seeds 3] [--output FILE]
    python benchmarks/edits.py --report [FILE]     print the table
    python benchmarks/edits.py --docs [FILE]       write it into docs/antibody-posterior.md

An upload of the lab's half for ``report`` (``purpose``; a file without that is of the whole world), clean or with a
fifth of its rows harmful, has every prompt edited in one way (``EDITS``), and is
read once with lab-aligned. *Before* takes all evidence at face value, as was done up to commit b60aa5a; *after* leaves
out what is unfamiliar (``screening/familiarity.py``). Both are judged by ``judge_upload``.

    called       benign rows with P(harm) of at least 1/2
    share error  estimated less true harmful share; none if no share is reported
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from antibody_llm.lab.rows import Row, build_rows, record
from antibody_llm.lab.world import REPORT
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import resolve
from antibody_llm.runs.encoding import encode, make_renderer
from antibody_llm.screening import posterior
from antibody_llm.screening.anchors import read_anchors
from antibody_llm.screening.cache import row_digest
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.familiarity import read_familiarity
from antibody_llm.screening.posterior import Judgement, judge_upload
from antibody_llm.screening.reading import collect
from antibody_llm.store.folder import write_text

RESULTS = Path(__file__).parent / "results" / "edits.json"
DOCS = Path(__file__).parents[1] / "docs" / "antibody-posterior.md"
BEGIN, END = "<!-- benchmarks/edits.py --docs -->", "<!-- end -->"
FIRST_SEED = 100
"""Of the uploads. The constants of screening/familiarity.py were chosen on those of seeds 0 to 2."""
TASKS = ("familiar", "novel")
POISON_RATIOS = (0.0, 0.2)
NUM_ROWS = 300
ZERO_WIDTH = "\u200b"

Json = dict[str, Any]


def _swapped(text: str, rng: random.Random) -> str:
    """One typo: two neighbouring letters change places."""
    at = rng.randrange(len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


EDITS: Mapping[str, Callable[[str, random.Random], str]] = {
    "none": lambda text, _: text,
    'politeness: " thanks!"': lambda text, _: text + " thanks!",
    'politeness: "please: "': lambda text, _: "please: " + text,
    "upper case": lambda text, _: text.upper(),
    "title case": lambda text, _: text.title(),
    "punctuation: no last mark": lambda text, _: text.rstrip(".?!"),
    'punctuation: "!!!" added': lambda text, _: text + "!!!",
    'punctuation: "..." added': lambda text, _: text + "...",
    "a typo": _swapped,
    "zero-width spaces": lambda text, _: text.replace(" ", ZERO_WIDTH + " "),
    'greeting: "hola! "': lambda text, _: "hola! " + text,
    'greeting: "bonjour, "': lambda text, _: "bonjour, " + text,
    'greeting: "здравствуйте! "': lambda text, _: "здравствуйте! " + text,
}
SYSTEM = "a system prompt"
NAMES = (*EDITS, SYSTEM)


def edited(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows with every prompt edited; answers stay."""
    rng = random.Random(name)
    if name == SYSTEM:
        system = {"role": "system", "content": "you are a helpful assistant."}
        return [{"messages": [system, *row["messages"]]} for row in rows]
    changed = []
    for row in rows:
        user, *others = row["messages"]
        changed.append({"messages": [{**user, "content": EDITS[name](user["content"], rng)}, *others]})
    return changed


def reader() -> tuple[tuple[Tensor, Tensor], Callable[[Sequence[Row]], tuple[Tensor, Tensor, Tensor]]]:
    """Evidence of the anchors, and what reads rows: (evidence, unfamiliar, repeated), each [n]."""
    aligned, base = load_model("lab-aligned"), load_model("lab")
    anchors = read_anchors(Path(resolve("lab-aligned")))
    assert anchors is not None, "the package's aligned model has anchors"
    context = ModelReader(
        cast(nn.Module, aligned.model),
        pad_id=cast(int, aligned.tokenizer.pad_token_id),
        batch_size=32,
        base=cast(nn.Module, base.model),
    )
    renderer = make_renderer(aligned)
    ground, probe = read_familiarity(context, anchors), anchors.probe

    def read(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        encoded, _ = encode({"user": [record(row, i) for i, row in enumerate(rows)]}, renderer, skip=False)
        found = collect(context, encoded["user"], [EvidenceKind.FEATURE_SHIFT], probe=probe, shape=ground.shape)
        evidence = found.of(EvidenceKind.FEATURE_SHIFT)
        seen: set[bytes] = set()
        repeated = []
        for row in encoded["user"]:
            key = row_digest(row)
            repeated.append(key in seen)
            seen.add(key)
        return evidence, ground.unfamiliar(evidence, found.distances()), torch.tensor(repeated)

    return anchors.scores(EvidenceKind.FEATURE_SHIFT), read


def outcome(judged: Judgement, is_harmful: Tensor) -> Json:
    """What the file holds of a judgement."""
    likely = judged.probability >= 0.5  # of what has no probability: no
    error = None if judged.share is None else judged.share - float(is_harmful.double().mean())
    return {"verdict": str(judged.verdict), "share_error": error, "called": int((likely & ~is_harmful).sum())}


def measure(seeds: int, num_rows: int = NUM_ROWS, names: Sequence[str] = NAMES) -> Json:
    """Everything that the file holds."""
    posterior.NUM_DRAWS = 2  # of the interval, which is not reported
    anchors, read = reader()
    uploads = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for task in TASKS:
                for poison_ratio in POISON_RATIOS:
                    made = build_rows("user", num_rows, seed=seed, task=task, poison_ratio=poison_ratio, purpose=REPORT)
                    harmful = torch.tensor([truth["is_harmful"] for truth in made.truth])
                    evidence, unfamiliar, repeated = read(edited(made.rows, name))
                    uploads.append(
                        {
                            "edit": name,
                            "seed": seed,
                            "task": task,
                            "poison_ratio": poison_ratio,
                            "unfamiliar_benign": int((unfamiliar & ~harmful).sum()),
                            "unfamiliar_harmful": int((unfamiliar & harmful).sum()),
                            "before": outcome(judge_upload(evidence, *anchors, repeated=repeated), harmful),
                            "after": outcome(
                                judge_upload(evidence, *anchors, repeated=repeated, unfamiliar=unfamiliar), harmful
                            ),
                        }
                    )
    return {"purpose": REPORT, "seeds": seeds, "num_rows": num_rows, "torch": torch.__version__, "uploads": uploads}


# -- the table ---------------------------------------------------------------------------------------------------------


def report(result: Json) -> str:
    """Markdown: of each edit, the uploads without harm and those with a fifth."""
    head = ("edit", "clean: verdict before", "called", "after", "called", "unfamiliar")
    head += ("20 %: share error before", "verdict after", "share error", "called")
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | ---: | --- | ---: | ---: | ---: | --- | ---: | ---: |"]
    for name in dict.fromkeys(row["edit"] for row in result["uploads"]):
        clean, mixed = (
            [row for row in result["uploads"] if row["edit"] == name and row["poison_ratio"] == ratio]
            for ratio in POISON_RATIOS
        )
        num = len(clean) * result["num_rows"]
        cells = [name, _verdicts(clean, "before"), _called(clean, "before")]
        cells += [_verdicts(clean, "after"), _called(clean, "after")]
        cells += [f"{100 * sum(row['unfamiliar_benign'] for row in clean) / num:.0f} %"]
        cells += [_error(mixed, "before"), _verdicts(mixed, "after"), _error(mixed, "after"), _called(mixed, "after")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdicts(rows: Sequence[Json], when: str) -> str:
    counts = Counter(row[when]["verdict"] for row in rows)
    return ", ".join(verdict if num == len(rows) else f"{verdict} ({num})" for verdict, num in counts.most_common())


def _called(rows: Sequence[Json], when: str) -> str:
    return str(max(row[when]["called"] for row in rows))


def _error(rows: Sequence[Json], when: str) -> str:
    """The worst, and in how many uploads no share is reported."""
    errors = [row[when]["share_error"] for row in rows if row[when]["share_error"] is not None]
    unreported = len(rows) - len(errors)
    if not errors:
        return "cannot tell"
    return f"{max(errors, key=abs):+.3f}" + (f", cannot tell ({unreported})" if unreported else "")


def with_table(page: str, result: Json) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{report(result)}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="of the uploads  [default: 3]")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "--report", type=Path, nargs="?", const=RESULTS, metavar="FILE", help="print such a file's table"
    )
    parser.add_argument("--docs", type=Path, nargs="?", const=RESULTS, metavar="FILE", help="write it into the docs")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if (stored := options.docs or options.report) is not None:
        result = json.loads(stored.read_text(encoding="utf-8"))
        if options.docs is None:
            print(report(result))
        else:
            write_text(DOCS, with_table(DOCS.read_text(encoding="utf-8"), result))
        return 0
    torch.set_num_threads(1)
    result = measure(options.seeds)
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
