"""Numbers in the prose of the guide and the concepts are those of the committed results."""

import json
from pathlib import Path

from antibody_llm.evaluation.measures import wilson_interval

ROOT = Path(__file__).resolve().parents[2]
DEMO = json.loads((ROOT / "docs" / "demo" / "results.json").read_text(encoding="utf-8"))["rows"]
DEFENCES = json.loads((ROOT / "benchmarks" / "results" / "defences.json").read_text(encoding="utf-8"))["rows"]
FAMILIAR = {"task": "familiar", "poison_ratio": 0.2, "budget": "default"}


def average(values):
    return sum(values) / len(values)  # as the tables do; the exact mean, 23.75, would round up


def percent(rows, measure: str, *, over=average, **wanted) -> str:
    found = [row[measure] for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert found, wanted
    return f"{100 * over(found):.1f} %"


def words(page: str) -> str:
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def test_how_fine_tuning_breaks_safety():
    text = words("concepts/how-fine-tuning-breaks-safety.md")
    before = percent(DEMO, "harmful_score", alignment="sft", finetuning="none", novel=False)
    clean, poisoned = (
        percent(DEMO, "harmful_score", headline=True, finetuning="sft", poison_ratio=ratio) for ratio in (0.0, 0.2)
    )
    assert f"harmful score from {before} to {poisoned}" in text
    assert f"from {before} to {clean}" in text
    weights = percent(DEFENCES, "harmful_score", defence="antibody", stage="finetuning", alignment="sft", **FAMILIAR)
    alone = percent(DEFENCES, "harmful_score", defence="antibody", stage="alignment", **FAMILIAR)
    both = percent(DEMO, "harmful_score", headline=True, finetuning="antibody", poison_ratio=0.2)
    assert f"leave {weights} after plain alignment and {both} after Antibody's own" in text
    assert f"without the weights leaves {alone}" in text
    novel = FAMILIAR | {"task": "novel", "alignment": "antibody", "defence": "antibody", "stage": "finetuning"}
    harmful, accuracy = (
        percent(DEFENCES, name, over=over, **novel)
        for name, over in (("harmful_score", max), ("finetune_accuracy", min))
    )
    assert (f"harmful score {harmful}", accuracy) == ("harmful score 98.5 %", "0.0 %")
    assert f"harmful score {harmful}, accuracy 0 %" in text


def test_reading_a_report():
    low, high = wilson_interval(0, 32)
    assert low == 0
    assert f"the interval still reaches {100 * high:.0f} %" in words("guide/reading-a-report.md")
