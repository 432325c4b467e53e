"""antibody calibrate: what it prints, with training that is made up."""

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

from antibody_llm import calibration
from antibody_llm.bench import run as engine
from antibody_llm.calibration.calibrate import Calibrated
from tests.bench.test_results import Inline
from tests.calibration.test_calibrate import Training, needs_optuna


@needs_optuna
def test_the_command_prints_what_was_found_and_how_to_use_it(antibody, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "local", lambda processes: Inline)
    monkeypatch.setattr(sys.modules[Calibrated.__module__], "carry_out", Training())
    small = {"rows": 20, "prompts": 8, "report_prompts": 8, "simulations": 2, "report_seeds": 1, "trials": 3}
    flags = [text for name, value in small.items() for text in (f"--{name.replace('_', '-')}", value)]
    command = ("calibrate", "--model", "lab-aligned", "--regime", "full", "--output", tmp_path / "out", *flags)
    ended = antibody(*command)
    assert ended.code == 0, ended.stderr
    assert f"antibody finetune --config {tmp_path / 'out' / 'preset.yaml'}" in ended.stdout
    assert "It says nothing of another attack" in ended.stdout
    found = json.loads(antibody(*command, "--json").stdout)
    assert (found["num_trials"], found["files"]["trials"]) == (3, str(tmp_path / "out" / "trials.parquet"))
    refused = antibody("calibrate", "--model", "lab-aligned", "--output", tmp_path / "out", "--minutes", "-1")
    assert (refused.code, "--minutes -1" in refused.stderr or "--minutes is -1" in refused.stderr) == (2, True)


def test_the_commands_of_the_guide_are_understood(antibody, monkeypatch):
    seen = []

    def calibrated(made, *, listen):
        seen.append(made)
        return SimpleNamespace(to_json=dict)

    monkeypatch.setattr(calibration, "calibrate", SimpleNamespace(with_settings=calibrated))
    page = Path(__file__).parents[2] / "docs" / "guide" / "calibrate.md"
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.startswith("antibody calibrate")):
        ended = antibody(*shlex.split(line)[1:], "--json")
        assert ended.code == 0, ended.stderr
    assert [(each.stage, each.alignment, each.trials) for each in seen] == [
        ("finetuning", None, 25),
        ("finetuning", "antibody", None),
        ("alignment", None, 40),
    ]
