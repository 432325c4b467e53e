"""A study in a folder: seeded, and resumed by whoever opens it next."""

import os
import sys
from importlib.util import find_spec

import pytest

from antibody_llm.errors import ConfigError, OutputError
from antibody_llm.searching import JOURNAL, open_study

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None and "CI" not in os.environ, reason="antibody-llm[search] is not installed"
)


def draw(trial):
    kind = trial.suggest_categorical("kind", ["plain", "bent"])
    near = trial.suggest_float("x", -1.0, 1.0)
    return -((near - 0.5) ** 2) - (trial.suggest_int("n", 1, 9, log=True) if kind == "bent" else 0)


def searched(folder, budget, **given):
    with open_study(folder, seed=1, budget=budget, startup=4, **given) as study:
        while (trial := study.ask()) is not None:
            study.tell(trial, draw(trial), {"note": trial.number})
        return study.told()


@needs_optuna
def test_a_search_that_is_stopped_and_taken_up_makes_the_trials_of_an_undisturbed_one(tmp_path):
    for budget in (3, 3, 5, 9):
        stopped = searched(tmp_path / "a", budget)
    assert stopped == searched(tmp_path / "b", 9)
    assert [told.number for told in stopped] == list(range(9))
    assert stopped[4].notes == {"note": 4}


@needs_optuna
def test_a_trial_that_was_asked_for_and_not_told_is_asked_again_with_its_parameters(tmp_path):
    with open_study(tmp_path, seed=1, budget=9) as study:
        lost = [study.ask(), study.ask()]
        values = [draw(trial) for trial in lost]
        half = study.ask()
        kind = half.suggest_categorical("kind", ["plain", "bent"])
    with open_study(tmp_path, seed=1, budget=3) as study:
        again = [study.ask(), study.ask()]
        assert [trial.number for trial in again] == [0, 1]
        assert [draw(trial) for trial in again] == values
        last = study.ask()
        assert last.suggest_categorical("kind", ["plain", "bent"]) == kind
        draw(last)
        assert study.ask() is None


@needs_optuna
def test_a_journal_that_a_kill_cut_within_a_line_goes_on_without_that_line(tmp_path):
    whole = searched(tmp_path, 2)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "worker')
    assert searched(tmp_path, 3)[:2] == whole


@needs_optuna
def test_first_trials_have_what_is_given_and_the_rest_is_drawn(tmp_path):
    told = searched(tmp_path, 3, first=[{"kind": "bent", "n": 7}, {"x": 0.25}])
    assert (told[0].parameters["kind"], told[0].parameters["n"], told[1].parameters["x"]) == ("bent", 7, 0.25)


@needs_optuna
def test_a_failed_trial_counts_and_has_no_score(tmp_path):
    with open_study(tmp_path, seed=0, budget=1) as study:
        study.tell(study.ask(), None)
        assert study.ask() is None
        assert [told.score for told in study.told()] == [None]


@needs_optuna
def test_a_study_that_another_process_has_open_is_refused(tmp_path):
    with open_study(tmp_path, seed=0, budget=1), pytest.raises(OutputError, match="another process is searching"):
        open_study(tmp_path, seed=0, budget=1).__enter__()


@needs_optuna
def test_what_is_no_journal_is_named_and_kept(tmp_path):
    (tmp_path / JOURNAL).write_text("not JSON\n\n")
    with pytest.raises(OutputError, match=r"journal\.log: this is no journal"):
        open_study(tmp_path, seed=0, budget=1).__enter__()
    assert (tmp_path / JOURNAL).read_text() == "not JSON\n\n"


def test_a_machine_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"antibody-llm\[search\]"):
        open_study(tmp_path, seed=0, budget=1).__enter__()
