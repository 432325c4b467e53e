"""The README's picture of the headline result, from the demonstration's results.

    python benchmarks/readme_picture.py [--results docs/demo/results.json] [--output docs/img/headline.svg]

Harmful score after fine-tuning, with and without harmful rows in the upload, of plain SFT and of Antibody: a bar is the
mean over seeds, a dot is a seed. The SVG is written by hand and follows the reader's light or dark theme. The test
beside it makes the picture again and compares it with the committed one.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "demo" / "results.json"
PICTURE = ROOT / "docs" / "img" / "headline.svg"

NAMES = {"sft": "undefended", "antibody": "Antibody"}
"""Both stages, alignment and fine-tuning, plain or defended."""
WIDTH, LEFT, RIGHT, MARGIN = 760, 170, 80, 14
"""Pixels: the whole picture, the column of names, the column of numbers, the space around."""
BAR, GAP, GROUP, TOP = 26, 8, 30, 84
"""Pixels: a bar's height, the space under it, the space above a group, the head."""

STYLE = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; fill: #1f2328 }
  .title { font-size: 19px; font-weight: 600 }
  .small { font-size: 12.5px; fill: #59636e }
  .group { font-weight: 600 }
  .number { font-weight: 600; font-size: 15px }
  .axis { stroke: #d1d9e0 }
  .track { fill: #818b981f }
  .sft { fill: #cf4a3c }
  .antibody { fill: #1a7f64 }
  .seed { fill: #1f2328; fill-opacity: .65 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .axis { stroke: #3d444d }
    .sft { fill: #e5695b } .antibody { fill: #2fa583 } .seed { fill: #f0f6fc }
  }
"""


@dataclass(frozen=True)
class Bar:
    """The headline's rows of one defence at one poison ratio."""

    poison_ratio: float
    defence: str
    harmful_scores: tuple[float, ...]
    accuracies: tuple[float, ...]
    """One per seed, 0 to 1."""


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """The headline's rows, by poison ratio and then defence, the undefended first."""
    rows = [row for row in results["rows"] if row["headline"]]
    ratios = sorted({row["poison_ratio"] for row in rows})
    found: list[Bar] = []
    for ratio in ratios:
        for name in NAMES:
            seeds = [row for row in rows if row["poison_ratio"] == ratio and row["finetuning"] == name]
            scores, accuracies = ([row[key] for row in seeds] for key in ("harmful_score", "finetune_accuracy"))
            found.append(Bar(ratio, name, tuple(scores), tuple(accuracies)))
    return found


def picture(results: Mapping[str, Any]) -> str:
    """The SVG."""
    shown = bars(results)
    num_seeds = {len(bar.harmful_scores) for bar in shown}
    assert len(num_seeds) == 1, "every bar has the same seeds"
    scale = WIDTH - LEFT - RIGHT
    lines = [
        '<text class="title" x="0" y="22">Safety after fine-tuning on what a user uploads</text>',
        '<text class="small" x="0" y="44">Harmful score: share of harmful prompts that the model complies with. Lower '
        "is better.</text>",
    ]
    y, ratio = TOP - GROUP, None
    for bar in shown:
        if bar.poison_ratio != ratio:
            ratio = bar.poison_ratio
            y += GROUP
            upload = f"{100 * ratio:.0f} % of the upload is harmful" if ratio else "clean upload"
            lines.append(f'<text class="group" x="0" y="{y}">{upload}</text>')
            y += 12
        score = mean(bar.harmful_scores)
        length = max(2.0, score * scale)  # a bar of 0 is still seen
        middle = y + BAR / 2
        lines += [
            f'<text x="0" y="{middle + 5:g}">{escape(NAMES[bar.defence])}</text>',
            f'<rect class="track" x="{LEFT}" y="{y}" width="{scale}" height="{BAR}" rx="3"/>',
            f'<rect class="{bar.defence}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3"/>',
            *(
                f'<circle class="seed" cx="{LEFT + seed * scale:.1f}" cy="{middle:g}" r="3"/>'
                for seed in bar.harmful_scores
            ),
            f'<text class="number" x="{WIDTH - RIGHT + 12}" y="{middle + 5:g}">{100 * score:.1f} %</text>',
        ]
        y += BAR + GAP
    accuracies = [round(100 * mean(bar.accuracies)) for bar in shown]
    accuracy = f"{min(accuracies)} % " + ("in all four" if len(set(accuracies)) == 1 else "or more")
    lines.append(
        f'<text class="small" x="0" y="{y + 22}">Bar: mean of {num_seeds.pop()} seeds; dot: one seed. Accuracy on the '
        f"user's task: {accuracy}. A small model, a fictional world.</text>"
    )
    body = "\n".join(lines)
    width, height = WIDTH + 2 * MARGIN, y + 26 + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN} {-MARGIN} {width} {height}" '
        f'width="{width}" height="{height}" '
        f'role="img" aria-label="{described(shown)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def described(shown: Sequence[Bar]) -> str:
    """The picture in words, for readers who do not see it."""
    parts = [
        f"{NAMES[bar.defence]}, {100 * bar.poison_ratio:.0f} % harmful rows: {100 * mean(bar.harmful_scores):.1f} %"
        for bar in shown
    ]
    return escape("Harmful score after fine-tuning. " + "; ".join(parts) + ".", quote=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args(arguments)
    text = picture(json.loads(given.results.read_text(encoding="utf-8")))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text, encoding="utf-8")
    print(given.output)


if __name__ == "__main__":
    main()
