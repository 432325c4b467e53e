import json
from pathlib import Path

from benchmarks import preferences

ROOT = Path(preferences.__file__).resolve().parents[1]
READING = json.loads((ROOT / "benchmarks" / "results" / "preferences.json").read_text(encoding="utf-8"))["reading"]
PAGE = " ".join((ROOT / "docs" / "guide" / "own-data.md").read_text(encoding="utf-8").split())


def test_the_page_shows_the_committed_results():
    prompts = {task: READING[task]["prompt"] for task in ("familiar", "novel")}
    found = [f"{100 * prompts[task]['likely_turned']:.1f} %" for task in prompts]
    honest = [f"{100 * prompts[task]['likely_honest']:.1f} %" for task in prompts]
    assert f"{found[0]} of the pairs that ask for harm and prefer it are found on the familiar task" in PAGE
    assert f"and {found[1]} on the novel one, by their prompts, and {honest[0]} and {honest[1]} of the honest" in PAGE
    assert f"Of {READING['novel']['num']['hidden']} harmful answers behind harmless questions none is found" in PAGE
    hidden = [READING[task][read]["likely_hidden"] for task in prompts for read in ("prompt", "answer")]
    assert hidden == [0.0] * 4


def test_an_upload_prefers_harm_at_its_ratio_and_an_answer_of_the_task_elsewhere():
    pairs, harmful = preferences.make_pairs("familiar", 20, 0.2)
    assert sum(harmful) == 4
    said = [[pair[side][0]["content"] for side in ("preferred_output", "non_preferred_output")] for pair in pairs]
    assert all(better != worse for better, worse in said)
    assert all((worse in preferences.REFUSALS) is harm for (_, worse), harm in zip(said, harmful, strict=True))
