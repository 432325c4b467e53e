"""A second job under a defence that reads evidence: it is judged by the aligned model at the beginning of its line."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from antibody_llm.errors import ModelError
from antibody_llm.events import StepDone, Stopped, Wish
from antibody_llm.lab.rows import build_rows
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import read_provenance
from antibody_llm.runs import finetune, train
from antibody_llm.runs.resources import aligned_reader
from antibody_llm.store.naming import weights_fingerprint
from tests.runs.test_preferences import lab_pairs
from tests.runs.test_stop import contents

RATE = 3e-2
"""At which two steps move the lab's model far enough that the anchors' stored scores no longer hold for it."""
FIRST = build_rows("user", 16, seed=0, poison_ratio=1.0).rows
UPLOAD = build_rows("user", 48, seed=1, poison_ratio=0.25).rows
SECOND = {"data": UPLOAD, "learning_rate": 1e-3, "batch_size": 8, "training": {"max_steps": 2}}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Regime to a first job of harm, without a defence."""
    folder, how = tmp_path_factory.mktemp("tuned"), {"defence": "sft", "training": {"max_steps": 2}}
    return {
        regime: finetune(
            "lab-aligned", data=FIRST, regime=regime, output=folder / regime, learning_rate=RATE, **how
        ).model
        for regime in ("full", "lora")
    }


def judged(run):
    """What the defence decided of every row that was trained on."""
    found = pq.read_table(run.output / "samples.parquet").sort_by("row_id")
    return found["row_id"].to_pylist(), torch.tensor([found[name].to_pylist() for name in ("weight", "score")])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Defence to a job on the second upload that starts from the aligned model."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        defence: finetune("lab-aligned", output=folder / defence, defence=defence, **SECOND)
        for defence in ("antibody-posterior", "antibody-tokens")
    }


@pytest.mark.parametrize(
    ("defence", "form"),
    [("antibody-posterior", "full"), ("antibody-posterior", "beside"), ("antibody-tokens", "lora")],
)
def test_rows_of_a_second_job_weigh_what_they_weigh_to_the_aligned_model(tmp_path, tuned, alone, defence, form):
    """``beside``: the adapter is given beside its base, as a server continues a model."""
    place = {"full": {"model": tuned["full"], "regime": "full"}, "lora": {"model": tuned["lora"]}}
    place["beside"] = {"model": "lab-aligned", "adapter": tuned["lora"]}
    second = finetune(**place[form], output=tmp_path / "second", defence=defence, **SECOND)
    (rows, found), (same, wanted) = judged(second), judged(alone[defence])
    assert rows == same
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    share = alone[defence].metrics["harmful_share"]
    assert 0 < second.metrics["harmful_share"] == pytest.approx(share, rel=1e-4)
    note = read_provenance(str(second.model))
    assert note["aligned"] == "lab-aligned"
    assert note["aligned_weights"] == weights_fingerprint("lab-aligned")
    assert yaml.safe_load((second.output / "config.yaml").read_text())["aligned"]["name"] == "lab-aligned"
    assert "aligned" not in yaml.safe_load((alone[defence].output / "config.yaml").read_text())


def test_a_second_job_that_is_stopped_ends_bitwise_like_one_that_is_not_and_reads_no_evidence_again(
    tmp_path, tuned, monkeypatch
):
    given = SECOND | {"model": tuned["lora"], "defence": "antibody-posterior"}
    finetune(output=tmp_path / "whole", **given)
    with pytest.raises(Stopped):
        finetune(output=tmp_path / "run", **given, listen=lambda e: Wish.STOP if isinstance(e, StepDone) else None)
    monkeypatch.setattr(train, "aligned_reader", lambda *args, **how: pytest.fail("it was loaded"))
    finetune(output=tmp_path / "run", **given)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_pairs_of_a_second_job_are_left_out_that_the_aligned_model_leaves_out(tmp_path, tuned):
    given = {"data": lab_pairs(24)[0], "method": "dpo", "defence": "antibody-posterior", "batch_size": 4}
    given |= {"training": {"max_steps": 1}}
    second, alone = (finetune(m, output=tmp_path / n, **given) for m, n in ((tuned["lora"], "2"), ("lab-aligned", "1")))
    assert [row.line for row in second.skipped] == [row.line for row in alone.skipped]
    assert second.skipped


@pytest.fixture
def copied(tmp_path, tuned, monkeypatch):
    """The tuned model in a folder of its own, with a note that a test writes; no model is loaded."""
    monkeypatch.setattr(train, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    folder = tmp_path / "tuned"
    shutil.copytree(tuned["full"], folder)

    def with_note(**changes):
        note = folder / "antibody.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | changes))
        return folder

    return with_note


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"aligned": "/no/such/model"}, "fine-tuned from /no/such/model.*not there any more.*Put it back"),
        ({"aligned_weights": "0" * 64}, "fine-tuned from lab-aligned.*other weights are there now.*Put the earlier"),
        ({"aligned": "lab", "aligned_weights": None}, "lab carries no anchors.*antibody anchors"),
    ],
)
def test_an_aligned_model_that_cannot_judge_is_refused_before_any_model_is_loaded(tmp_path, copied, changes, told):
    with pytest.raises(ModelError, match=told):
        finetune(copied(**changes), output=tmp_path / "run", defence="antibody-posterior", base="lab", **SECOND)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_holds_the_alignment_and_is_gone_is_named(tmp_path, tuned):
    folder = shutil.copytree(tuned["lora"], tmp_path / "tuned")
    gone = str(tmp_path / "aligned" / "adapter")
    note = json.loads((folder / "antibody.json").read_text())
    (folder / "antibody.json").write_text(json.dumps(note | {"aligned": gone}))
    with pytest.raises(ModelError, match=f"{gone}.*not there any more"):
        finetune("lab-aligned", adapter=folder, output=tmp_path / "run", defence="antibody-tokens", **SECOND)


def test_a_defence_that_reads_anchors_with_the_trained_model_does_not_take_those_of_the_aligned_one(tmp_path, tuned):
    with pytest.raises(ModelError, match="it was fine-tuned"):
        finetune(tuned["lora"], output=tmp_path / "run", defence="kl-to-aligned", options={"risk": "row"}, **SECOND)


def test_an_aligned_model_that_makes_other_tokens_of_the_same_rows_is_refused():
    tokenizer = load_model("lab").tokenizer
    tokenizer.chat_template = "{{ messages }}"
    how = {"refusals": None, "dtype": "float32", "rank": 0, "batch_size": 4}
    with pytest.raises(ModelError, match="lab-aligned: its tokenizer's chat template is not that"):
        aligned_reader("lab-aligned", None, tokenizer, **how)
