"""A calibration with training that is made up: what is found, resumed, written, refused."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from antibody_llm.bench.matrix_file import read_matrix
from antibody_llm.bench.plan import make_plan
from antibody_llm.bench.results import Results
from antibody_llm.calibration.calibrate import carry_through
from antibody_llm.cli.options import given_values
from antibody_llm.errors import ConfigError, EvaluationError, TrainingError
from antibody_llm.events import Progress, listening
from antibody_llm.settings import AlignSettings, FinetuneSettings, make_settings
from antibody_llm.settings.calibrate import CalibrateSettings
from tests.bench.test_results import Inline

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None and "CI" not in os.environ, reason="antibody-llm[search] is not installed"
)


def share(value):
    return {"value": value, "n": 100, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}


class Training:
    """Makes up what a cell comes to: a high tau lets harm through, and one below 0.1 costs the task."""

    def __init__(self, stop_after=None, fails=lambda job: False):
        self.done, self.stop_after, self.fails = [], stop_after, fails

    def __call__(self, folder, job):
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        if self.fails(job):
            raise TrainingError("the loss is not a number")
        results = Results(folder)
        self.done.append(job.key)
        values = {"cpu_seconds": 2.0}
        if job.kind == "alignment":
            (results.aligned(job) / "model").mkdir(parents=True)
            (results.aligned(job) / "result.json").write_text("{}")
        else:
            tau = job.config["finetuning"]["options"].get("tau", 5.0)
            if job.needs is not None:
                tau = job.needs.config["defence"]["options"].get("lam2", 5.0)
            harm = min(1.0, tau) if job.config["poison_ratio"] else 0.0
            values |= {
                "harmful_score": share(harm),
                "over_refusal": share(0.01),
                "finetune_accuracy": share(0.9 - max(0.0, 0.1 - tau)),
            }
        results.write(job, values)
        return values


def settings(folder, **changed):
    small = {"rows": 20, "prompts": 8, "report_prompts": 8, "simulations": 2, "report_seeds": 2, "trials": 8}
    return CalibrateSettings(output=folder, regime="full", **{"model": "lab-aligned"} | small | changed)


def calibrated(folder, work, /, **changed):
    return carry_through(settings(folder, **changed), make_pool=Inline, work=work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    if find_spec("optuna") is None and "CI" not in os.environ:
        pytest.skip("antibody-llm[search] is not installed")
    training = Training()
    return calibrated(tmp_path_factory.mktemp("whole") / "out", training), training


def test_the_least_harmful_setting_within_the_limits_is_found_and_beats_the_defaults(whole):
    report = whole[0].report
    points = {point["name"]: point for point in report["points"]}
    found, defaults = (points[name]["reported"]["harm"]["value"] for name in ("found", "defaults"))
    within = min(trial["harm"] for trial in report["trials"] if trial["excess"] == 0)
    assert 0.07 < found <= within < 0.3 < defaults == 1.0
    assert report["trials"][0]["tau"] == 1.0  # the paper's constants are tried first, not the lab's preset
    assert points["the model's own preset"]["reported"]["harm"]["value"] == 0.2
    assert points["undefended"]["reported"]["harm"]["value"] == 1.0


def test_the_report_is_on_rows_and_seeds_that_no_trial_has_seen(whole):
    results = [json.loads(file.read_text()) for file in (whole[0].output / "results").glob("*.json")]
    seeds = {}
    for each in results:
        seeds.setdefault(each["config"]["sets"]["harmful_prompts"], set()).add(each["config"]["seed"])
    assert sorted(map(sorted, seeds.values())) == [[0], [1, 2]]


def test_the_preset_is_taken_by_finetune_and_the_matrix_by_bench(whole, tmp_path):
    files, found = whole[0].files, yaml.safe_load(Path(whole[0].files["preset"]).read_text())
    values = given_values(FinetuneSettings, {"model": "lab-aligned", "output": str(tmp_path)}, files["preset"])
    made = make_settings(FinetuneSettings, values)
    assert (made.defence, made.regime) == ("antibody", "full")
    assert made.options == found["options"]
    assert {"tau", "loss_reduction", "scoring"} == set(found["options"])  # nothing is left to a model's own preset
    planned = make_plan(read_matrix(files["matrix"]))
    done = {file.stem for file in (whole[0].output / "results").glob("*.json")}
    assert [cell.defence for cell in planned.cells[:1]] == ["sft"]
    assert done & {cell.job.key for cell in planned.cells if cell.defence == "antibody"}


def test_the_page_says_how_far_to_trust_it_and_the_trials_are_a_table(whole):
    files, report = whole[0].files, whole[0].report
    page = Path(files["report"]).read_text()
    for text in ("one model, plain mixing of 5 to 30 percent harm", "<svg", "found", report["verdict"]):
        assert text in page
    assert pq.read_table(files["trials"]).num_rows == report["num_trials"] == 8
    assert json.loads(Path(files["values"]).read_text()) == report


@needs_optuna
def test_a_killed_calibration_goes_on_and_does_no_finished_job_again(whole, tmp_path):
    calls = [Training(stop_after=5), Training(stop_after=15), Training()]  # killed in a trial, and in the report
    for training in calls[:2]:
        with pytest.raises(KeyboardInterrupt):
            calibrated(tmp_path / "out", training)
    resumed = calibrated(tmp_path / "out", calls[2])
    done = [key for training in calls for key in training.done]
    assert sorted(done) == sorted(whole[1].done)
    assert resumed.report["trials"] == whole[0].report["trials"]
    again = Training()
    assert calibrated(tmp_path / "out", again).report["points"] == resumed.report["points"]
    assert again.done == []


@needs_optuna
def test_more_trials_search_on(tmp_path):
    first = calibrated(tmp_path / "out", Training(), trials=3).report["trials"]
    assert calibrated(tmp_path / "out", Training(), trials=5).report["trials"][:3] == first


@needs_optuna
def test_time_ends_a_search_and_counts_over_calls(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr("antibody_llm.calibration.search.time.monotonic", lambda: float(next(clock)))
    first = calibrated(tmp_path / "out", Training(), trials=None, minutes=3)
    assert 1 <= first.report["num_trials"] <= 4
    again = calibrated(tmp_path / "out", Training(), trials=None, minutes=3)
    assert again.report["num_trials"] == first.report["num_trials"]


@needs_optuna
def test_an_alignment_is_made_in_every_trial_and_one_that_fails_is_a_trial_that_failed(tmp_path):
    def fails(job):
        return job.kind == "alignment" and job.config["defence"]["options"].get("lam2") == 0.05  # the paper's

    heard = []
    with listening(heard.append):
        found = calibrated(
            tmp_path / "out", Training(fails=fails), model="lab", stage="alignment", trials=4, report_seeds=1
        )
    report = found.report
    assert (report["num_trials"], report["num_failed"]) == (4, 1)
    assert report["trials"][0]["error"] == "the loss is not a number"
    assert report["trials"][0]["score"] is None
    assert "defaults" not in [point["name"] for point in report["points"]]
    assert "defaults cannot be measured for the report (the loss is not a number)." in [
        getattr(each, "message", "") for each in heard
    ]
    values = given_values(AlignSettings, {"model": "lab", "output": str(tmp_path)}, found.files["preset"])
    assert set(values["training"]) == {"learning_rate", "num_train_epochs"}
    progress = [each for each in heard if isinstance(each, Progress) and each.what.startswith("trial")]
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (0, 4, 4)


@needs_optuna
@pytest.mark.parametrize("given", [{}, {"model": "lab", "stage": "alignment"}], ids=["finetuning", "alignment"])
def test_several_trials_at_once_do_every_job_once(tmp_path, given):
    class Wide(Inline):
        capacity = 5

    training = Training()
    report = carry_through(
        settings(tmp_path / "out", trials=5, report_seeds=1, **given), make_pool=Wide, work=training
    ).report
    assert (report["num_trials"], report["num_failed"]) == (5, 0)
    assert len(set(training.done)) == len(training.done)


@needs_optuna
def test_a_model_that_is_to_be_aligned_first_is_aligned_once(tmp_path):
    training = Training()
    calibrated(tmp_path / "out", training, model="lab", alignment="sft", trials=2, report_seeds=1)
    assert len(list((tmp_path / "out" / "alignments").iterdir())) == 1


@needs_optuna
def test_models_are_evaluated_with_weights_of_the_type_that_is_asked_for(tmp_path):
    calibrated(tmp_path / "out", Training(), dtype="bfloat16", trials=1, report_seeds=1)
    results = [json.loads(file.read_text()) for file in (tmp_path / "out" / "results").glob("*.json")]
    assert {each["config"]["dtype"] for each in results} == {"bfloat16"}


@needs_optuna
def test_settings_that_leave_as_much_harm_as_no_defence_are_not_recommended(tmp_path):
    class Useless(Training):
        def __call__(self, folder, job):
            values = super().__call__(folder, job) | {"harmful_score": share(0.7), "finetune_accuracy": share(0.02)}
            Results(folder).write(job, values)
            return values

    verdict = calibrated(tmp_path / "out", Useless(), trials=2, report_seeds=1).report["verdict"]
    assert "do not use it" in verdict
    assert "Accuracy says nothing here" in verdict


@needs_optuna
def test_a_search_of_which_every_trial_fails_says_why(tmp_path):
    fails = Training(fails=lambda job: job.kind == "cell" and "tau" in job.config["finetuning"]["options"])
    with pytest.raises(EvaluationError, match="the loss is not a number"):
        calibrated(tmp_path / "out", fails, trials=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"defence": "sft"}, "nothing to search .* antibody-posterior"),
        ({"defence": "antibodi"}, "did you mean 'antibody'"),
        ({"judge": "nobody"}, "nobody"),
        ({"training": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"poison_ratios": "0.3..0.1"}, "LOW..HIGH"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, given, message):
    training = Training()
    with pytest.raises(ConfigError, match=message):
        calibrated(tmp_path / "out", training, **given)
    assert training.done == []


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"anchor_harmful_data": "a.jsonl"}, "anchor_harmful_data"),
        ({"stage": "alignment", "alignment": "sft"}, "alignment"),
        ({"finetuning": "lisa"}, "finetuning"),
        ({"trials": 0}, "trials"),
        ({"minutes": 0.0}, "minutes"),
        ({"simulations": 1}, "simulations"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(tmp_path, given, field):
    with pytest.raises(ConfigError) as raised:
        settings(tmp_path, **given)
    assert raised.value.field == field


def test_a_model_without_a_world_needs_a_judge(tmp_path, tiny_llama_folder):
    given = CalibrateSettings(model=str(tiny_llama_folder), output=tmp_path / "out")
    with pytest.raises(ConfigError, match="judge is missing"):
        carry_through(given, make_pool=Inline, work=Training())
