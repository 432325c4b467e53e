import pytest
import torch
from tests.screening.test_token_evidence import BEFORE, MODEL, anchors_of
from tests.tinylm import random_refusals, tiny_llama
from torch.testing import assert_close

from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.screening import stored_rule
from antibody_llm.screening.stored_rule import FOLDER, stored_token_rule
from antibody_llm.screening.token_evidence import read_token_rule

ANCHORS = anchors_of()


def reader(model=MODEL, base=BEFORE, **settings):
    return ModelReader(model, **({"refusals": random_refusals(), "base": base, "batch_size": 4} | settings))


def same(one, other):
    exactly = {"rtol": 0, "atol": 0}
    assert_close(one.probe.direction, other.probe.direction, **exactly)
    for name in ("token", "row"):
        assert_close(getattr(one, name).slope, getattr(other, name).slope, **exactly)
        assert getattr(one, name).bias == getattr(other, name).bias
    assert (one.probe.offset, one.auroc) == (other.probe.offset, other.auroc)
    for mine, theirs in zip(one.judges, other.judges, strict=True):
        assert_close(mine, theirs, **exactly)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path))
    return tmp_path / FOLDER


@pytest.fixture
def readings(monkeypatch):
    made = []

    def counted(*args):
        made.append(args)
        return read_token_rule(*args)

    monkeypatch.setattr(stored_rule, "read_token_rule", counted)
    return made


def test_a_rule_is_read_once_and_is_the_same_from_the_file(folder, readings):
    first = stored_token_rule(reader(), ANCHORS)
    same(stored_token_rule(reader(), ANCHORS), first)
    same(first, read_token_rule(reader(), ANCHORS))
    assert len(readings) == 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: (reader(model=tiny_llama(seed=3)), ANCHORS),
        lambda: (reader(base=tiny_llama(seed=3)), ANCHORS),
        lambda: (reader(refusals=random_refusals(seed=5)), ANCHORS),
        lambda: (reader(batch_size=8), ANCHORS),
        lambda: (reader(autocast=lambda: torch.autocast("cpu", torch.bfloat16)), ANCHORS),
        lambda: (reader(), anchors_of(harmful=(41, 50))),
    ],
)
def test_whatever_decides_the_rule_names_another_file(folder, readings, other):
    stored_token_rule(reader(), ANCHORS)
    stored_token_rule(*other())
    assert len(readings) == 2
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_file_is_said_and_replaced(folder, readings, caplog):
    first = stored_token_rule(reader(), ANCHORS)
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:100])
    same(stored_token_rule(reader(), ANCHORS), first)
    assert f"{file}: cannot be read" in caplog.text
    stored_token_rule(reader(), ANCHORS)
    assert len(readings) == 2


def test_a_cache_that_cannot_be_written_is_said_and_the_rule_is_used(folder, readings, caplog):
    folder.write_text("in the way")
    rule = stored_token_rule(reader(), ANCHORS)
    assert "cannot be written" in caplog.text
    assert "ANTIBODY_CACHE" in caplog.text
    same(rule, read_token_rule(reader(), ANCHORS))
