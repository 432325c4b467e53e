"""The list of what other prompts changed, from made-up results."""

import pytest

from antibody_llm.bench.defences_differences import differences
from antibody_llm.errors import ConfigError


def row(harm, *, seed=0, defence="bds", purpose=None, accuracy=1.0, refusal=0.0, **more):
    about = {"stage": "finetuning", "alignment": "sft", "regime": "full", "learning_rate": None, "budget": "default"}
    measures = {"harmful_score": harm, "finetune_accuracy": accuracy, "over_refusal": refusal}
    setting = {"defence": defence, "task": "novel", "poison_ratio": 0.2, "seed": seed, "purpose": purpose}
    return about | setting | measures | more


def results(*rows):
    return {"rows": list(rows)}


def lines(page):
    return [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| defence", "| ---"))]


def test_a_line_has_both_means_with_intervals_over_seeds_and_prompts():
    old = results(row(0.1), row(0.1, seed=1))
    new = results(row(0.5, purpose="report"), row(0.7, seed=1, purpose="report"))
    (line,) = lines(differences(old, new))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["bds (finetuning)", "sft", "novel", "20 %"]
    # Wilson's interval of 40 of 400; Student's of 0.5 and 0.7: 0.6 +- 12.706 * 0.1, cut at 0 and 1
    assert cells[4:6] == ["10.0 (7.4 to 13.3)", "60.0 (0.0 to 100.0)"]
    assert cells[-2:] == ["-", "2"]


def test_means_differ_where_their_intervals_do_not_overlap_and_the_page_counts_them():
    old = results(row(0.1), row(0.5, defence="lisa"), row(0.5, defence="gone"))
    new = results(row(0.6, purpose="report"), row(0.45, defence="lisa", purpose="report", accuracy=0.5))
    page = differences(old, new)
    assert [line.split("|")[-3].strip() for line in lines(page)] == ["harmful score", "accuracy"]
    assert (
        "Of 2 settings with figures of both, these differ: harmful score in 1, accuracy in 1, over-refusal in 0."
        in page
    )
    assert "1 setting has figures before alone." in page


def test_what_is_not_the_default_is_named_and_a_failed_cell_has_no_figures():
    unusual = {"regime": "lora", "learning_rate": 1e-3, "budget": "long"}
    failed = {"error": "out of memory", "purpose": "report", "seed": 1}
    page = differences(results(row(0.1, **unusual)), results(row(0.1, **unusual, purpose="report"), failed))
    (line,) = lines(page)
    assert line.startswith("| bds (finetuning, lora, learning rate 0.001, long) |")


def test_results_of_the_same_part_or_of_other_cells_are_not_compared():
    with pytest.raises(ConfigError, match="both results are of the whole of the lab's world"):
        differences(results(row(0.1)), results(row(0.2)))
    with pytest.raises(ConfigError, match="no cell in common"):
        differences(results(row(0.1)), results(row(0.2, defence="lisa", purpose="report")))
