"""What the benchmark of defences plans, says of each cell and makes of failures; no model is trained."""

import json
from pathlib import Path

import pytest

from antibody_llm.bench.cell import MEASURES, VARIANTS, Alignment, Cell
from antibody_llm.bench.defences import plan, run_defences
from antibody_llm.bench.defences_report import grid, markdown, merged
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_defence, make_repair
from antibody_llm.errors import ConfigError
from antibody_llm.lab.world import REPORT
from benchmarks import defences as script

STEP = {"sft": 1.0, "vaccine": 2.5, "lisa": 1.5}
"""CPU seconds that the stand-in says a step took."""


def stand_in(folder: Path, job) -> dict[str, float]:
    """Of an alignment or a cell, without running it."""
    if isinstance(job, Alignment):
        if job.defence == "tar":
            raise MemoryError("out of memory")
        return {"seconds": 100.0, "cpu_seconds_per_step": STEP.get(job.defence, 1.0)}
    seconds = 2.0 if job.post != "none" else 8.0 + job.seed
    trained = {"cpu_seconds_per_step": STEP.get(job.finetuning, 1.0)} if job.post == "none" else {}
    return dict.fromkeys(MEASURES, 0.25) | {"harmful_score": 0.1 * (1 + job.seed), "seconds": seconds} | trained


def rows_of(results, defence, stage, alignment="sft"):
    return [
        row
        for row in results["rows"]
        if (row["defence"], row["stage"], row["alignment"]) == (defence, stage, alignment)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    entries = plan(only=["vaccine", "tar", "lisa", "antidote"], tasks=["novel"], seeds=2)
    return run_defences(
        entries, output=tmp_path_factory.mktemp("run"), flags="--tasks novel --seeds 2", jobs=1, carry_out=stand_in
    )


def test_the_default_set_holds_every_defence_of_the_catalogue_on_the_alignments_of_its_stage():
    planned = {(e.stage, e.defence, e.cell.alignment) for e in plan()}
    for stage, name in CATALOGUE:
        alignments = {Stage.ALIGNMENT: [name], Stage.FINETUNING: ["sft", "antibody"], Stage.POST: ["sft"]}[stage]
        assert {(stage, name, alignment) for alignment in alignments} <= planned
    settings = {(e.cell.task, e.cell.poison_ratio, e.budget, e.cell.seed) for e in plan()}
    assert settings == {(task, 0.2, "default", seed) for task in ("familiar", "novel") for seed in range(3)}


def test_no_row_is_planned_twice():
    entries = plan(poison_ratios=[0, 0.05, 0.2, 0.5, 0.9, 1], budgets=["default", "long"])
    assert len(set(entries)) == len(entries)


def test_plain_sft_and_the_oracle_come_along_whatever_is_asked_for():
    assert {e.defence for e in plan(only=["bds"])} == {"sft", "oracle", "bds"}


@pytest.mark.parametrize(("ratio", "finetuning"), [(0, "sft"), (0.5, "oracle"), (1, "none")])
def test_the_oracle_trains_on_the_benign_rows_that_there_are(ratio, finetuning):
    oracle = next(e for e in plan(only=["sft"], poison_ratios=[ratio]) if e.defence == "oracle")
    assert oracle.cell.finetuning == finetuning


def test_the_cost_of_a_step_is_read_against_plain_sft_of_the_same_stage(results):
    assert [row["cost_ratio"] for row in rows_of(results, "vaccine", "alignment", "vaccine")] == [2.5, 2.5]
    assert [row["cost_ratio"] for row in rows_of(results, "lisa", "finetuning", "antibody")] == [1.5, 1.5]
    # the repair takes 2 seconds, the fine-tuning before it 8 and 9
    assert [row["cost_ratio"] for row in rows_of(results, "antidote", "post")] == [1.25, 1 + 2 / 9]


def test_the_seconds_of_an_alignment_defence_are_those_of_the_alignment(results):
    assert [row["seconds"] for row in rows_of(results, "vaccine", "alignment", "vaccine")] == [100.0, 100.0]


def test_a_failure_is_a_row_that_says_why(results):
    failed = rows_of(results, "tar", "alignment", "tar")
    assert [row["error"] for row in failed] == ["MemoryError: out of memory"] * 2
    assert results["complete"]
    assert [row["defence"] for row in results["rows"] if "error" in row] == ["tar", "tar"]


def test_a_row_has_the_columns_of_the_demonstration_and_its_own(results):
    (row, _) = rows_of(results, "lisa", "finetuning", "sft")
    assert set(row) == {
        "alignment", "finetuning", "regime", "headline", "task", "novel", "poison_ratio", "epochs", "seed",
        "learning_rate", "harmful_score", "finetune_accuracy", "over_refusal", "incoherent", "retention", "seconds",
        "defence", "stage", "budget", "cost_ratio", "purpose",
    }  # fmt: skip
    assert (row["task"], row["novel"], row["budget"]) == ("novel", True, "default")
    assert row["purpose"] == REPORT


def test_the_page_gives_the_mean_and_the_worst_seed_and_does_not_hide_a_failure(results):
    lines = markdown(results).splitlines()
    assert "| lisa | finetuning | sft | 15.0 (20.0) | 25.0 (25.0) | 25.0 (25.0) | 25.0 (25.0) | 8 | 1.50 | 2 |" in lines
    assert "| tar | alignment | tar | failed | failed | failed | failed | - | - | 0 (2 failed) |" in lines
    assert "- alignment `tar`, seed 0: MemoryError: out of memory" in lines


def test_the_page_names_the_flags_that_repeat_it(results):
    assert "python benchmarks/defences.py --output DIR --tasks novel --seeds 2\n" in markdown(results)


def test_the_flags_of_a_run_plan_the_same_rows_again():
    given = "--only antibody-posterior --tasks novel --poison-ratios 0.05:1,0.2 --budgets default --alignments antibody"
    given += " --regime lora --learning-rate 0.0001 --seeds 2 --purpose whole"
    assert script.flags(script.parsed(["--output", "x", *given.split()])) == given


def test_a_learning_rate_is_that_of_every_fine_tuning_and_of_its_baseline():
    entries = plan(only=["bds"], learning_rate=1e-4)
    assert {e.cell.learning_rate for e in entries} == {e.baseline.learning_rate for e in entries} == {1e-4}
    assert all("-lr0.0001-" in e.cell.name for e in entries)


def test_a_poison_ratio_may_have_its_own_number_of_seeds():
    entries = plan(only=["sft"], poison_ratios=[0.05, 0.2], seeds=3, seeds_at={0.05: 1})
    assert {(e.cell.poison_ratio, e.cell.seed) for e in entries} == {(0.05, 0), (0.2, 0), (0.2, 1), (0.2, 2)}


def test_what_takes_a_defence_apart_comes_along_with_it():
    planned = {e.defence: e.cell.finetuning for e in plan(only=["antibody-posterior"], alignments=["antibody"])}
    assert set(planned) == {
        "sft", "oracle", "antibody-posterior", "sft-rehearsal", "antibody-posterior-no-rehearsal"
    }  # fmt: skip
    assert {e.cell.alignment for e in plan(only=["antibody-posterior"], alignments=["antibody"])} == {"antibody"}


def test_a_variant_is_planned_at_the_stage_of_its_defence_with_options_that_this_has():
    planned = {e.defence: e.stage for e in plan(only=list(VARIANTS), alignments=["sft"], tasks=["novel"], seeds=1)}
    for variant, (name, options) in VARIANTS.items():
        if planned[variant] is Stage.POST:
            make_repair(name, options)
        else:
            make_defence(planned[variant], name, options)
    assert planned["safe-lora-true"] is Stage.POST


def test_a_sweep_has_a_column_for_each_poison_ratio_and_tells_the_worst_seed(tmp_path):
    entries = plan(only=["lisa"], alignments=["sft"], poison_ratios=[0.2, 0.05], seeds=2, seeds_at={0.05: 1})
    swept = run_defences(entries, output=tmp_path, jobs=1, carry_out=stand_in)
    page = grid(swept, "Lisa")
    assert page.startswith("# Lisa\n")
    assert "| p | 5 % | 20 % |" in page
    assert "| lisa | 10.0 / 25.0 / 25.0 (1 seed) | 20.0 / 25.0 / 25.0 |" in page


def test_every_table_of_a_sweep_has_its_defences_in_the_same_order(tmp_path):
    def swept(only, name, **setting):
        (tmp_path / name).mkdir()
        planned = plan(only=only, alignments=["sft"], seeds=1, **setting)
        return run_defences(planned, output=tmp_path / name, jobs=1, carry_out=stand_in)

    first = swept(["ema", "lisa"], "first", tasks=["novel"])
    later = [swept([name], name, tasks=["familiar"]) for name in ("lisa", "ema")]
    names = [line.split(" |")[0] for line in grid(merged([first, *later]), "Order").splitlines()]
    shown = [name for name in names if name in ("| sft", "| oracle", "| ema", "| lisa")]
    assert shown == ["| sft", "| oracle", "| ema", "| lisa"] * 2


def test_of_two_results_with_the_same_row_the_later_counts(results):
    again = {**results, "flags": ["--again"], "rows": [{**results["rows"][0], "harmful_score": 0.77}]}
    both = merged([results, again])
    assert len(both["rows"]) == len(results["rows"])
    assert both["rows"][0]["harmful_score"] == 0.77
    assert both["flags"] == [*results["flags"], "--again"]


def of_the_whole_world(results):
    return {**results, "rows": [{k: v for k, v in row.items() if k != "purpose"} for row in results["rows"]]}


def test_results_of_two_parts_of_the_world_are_never_one(results):
    old = of_the_whole_world(results)
    assert {Cell.of(row).purpose for row in old["rows"]} == {None}
    with pytest.raises(ConfigError, match="some rows are of the whole of the lab's world, others of the half"):
        merged([old, results])
    with pytest.raises(ConfigError, match="a file or folder of its own"):
        markdown({**results, "rows": [*old["rows"][:1], *results["rows"]]})


def test_the_page_says_which_part_of_the_world_it_is_of_and_how_many_prompts_that_holds(results):
    assert "are of the half of the lab's world for `report`" in markdown(results)
    assert "share of 256 held-out harmful prompts" in markdown(results)
    old = markdown(of_the_whole_world(results))
    assert "are of the whole of the lab's world" in old
    assert "share of 400 held-out harmful prompts" in old
    assert "--output DIR --tasks novel --seeds 2 --purpose whole\n" in old
    assert "of the whole of the lab's world" in grid(of_the_whole_world(results), "Title")


def test_the_page_says_which_options_were_cut_down(results):
    assert "- alignment `tar`: `inner_steps = 8`" in markdown(results)
    assert "cut down" in markdown(results)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"only": ["boster"]}, "did you mean 'booster'"),
        ({"tasks": ["strange"]}, "--tasks"),
        ({"budgets": ["endless"]}, "--budgets"),
        ({"poison_ratios": [1.5]}, "1.5 is not a share"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        plan(**wrong)


def test_the_script_ends_with_1_when_a_defence_failed_and_writes_the_page(tmp_path, monkeypatch, capsys):
    broken = {"rows": [{"defence": "tar", "stage": "alignment", "seed": 0, "error": "why"}], "seconds": 1.0}
    monkeypatch.setattr(script, "run_defences", lambda *a, **k: broken)
    assert script.main(["--output", str(tmp_path), "--only", "tar"]) == 1
    assert "why" in capsys.readouterr().err


def test_the_script_writes_the_page_from_results(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = tmp_path / "defences.md"
    assert script.main(["--report", str(tmp_path / "results.json"), "--write", str(page)]) == 0
    assert page.read_text() == markdown(results)
    (tmp_path / "before.json").write_text(json.dumps(of_the_whole_world(results)))
    both = ["--report", str(tmp_path / "results.json"), "--before", str(tmp_path / "before.json")]
    assert script.main([*both, "--write", str(page)]) == 0
    assert page.read_text() == markdown(results, of_the_whole_world(results))
    assert Cell.of(results["rows"][0]).alignment == "sft"


def test_the_script_mixes_no_two_parts_of_the_world_and_lists_no_difference_from_nothing(tmp_path, results, capsys):
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for file, content in zip(files, (of_the_whole_world(results), results), strict=True):
        file.write_text(json.dumps(content))
    page = tmp_path / "page.md"
    assert script.main(["--report", *map(str, files), "--write", str(page)]) == 2
    assert "others of the half" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--report", str(tmp_path / "none.json"), "--before", str(files[0]), "--write", str(page)])
    assert "none.json: there is no such file of results" in capsys.readouterr().err
    assert not page.exists()
