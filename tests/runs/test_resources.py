import pytest

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import DataError, ModelError
from antibody_llm.runs import finetune, train
from antibody_llm.runs.resources import checked_resources

POSTERIOR = make_defence(Stage.FINETUNING, "antibody-posterior")


def rows(template):
    return [Record(0, (Message("user", "?"), Message("assistant", "no")), template, "rows.jsonl", 1)]


def test_a_defence_without_needs_is_given_nothing_whatever_the_model():
    assert checked_resources(make_defence(Stage.FINETUNING, "sft"), "lab", None, None, []) is None


def test_anchors_stored_with_the_model_are_handed_in_for_an_upload_of_their_template():
    anchors = checked_resources(POSTERIOR, "lab-aligned", None, "lab", rows(Template.CHAT))
    assert anchors.num_harmful > 0
    with pytest.raises(DataError, match="rows of the text template, and no anchor"):
        checked_resources(POSTERIOR, "lab-aligned", None, "lab", rows(Template.TEXT))


def test_a_model_that_was_fine_tuned_is_not_advised_to_be_given_anchors(tmp_path):
    (tmp_path / "antibody.json").write_text('{"verb": "finetune", "base": "lab"}')
    for model, adapter in ((str(tmp_path), None), ("lab-aligned", str(tmp_path))):  # full, and as a server continues
        with pytest.raises(ModelError, match="carries no anchors: it was fine-tuned.* on all rows at once") as refused:
            checked_resources(POSTERIOR, model, adapter, "lab", rows(Template.CHAT))
        assert "antibody anchors" not in str(refused.value)


@pytest.mark.parametrize(
    ("base", "told"), [(None, "does not say which model it was before"), ("lab", "lab carries no anchors")]
)
def test_what_is_missing_is_reported_before_any_model_is_loaded(tmp_path, monkeypatch, base, told):
    monkeypatch.setattr(train, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(ModelError, match=told):
        finetune("lab", base=base, defence="antibody-posterior", num=16, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
