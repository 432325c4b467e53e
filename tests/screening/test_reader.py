from types import SimpleNamespace

import pytest

from antibody_llm.data.records import Template
from antibody_llm.errors import DataError, ModelError
from antibody_llm.models.loading import LoadedModel
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.reader import chosen_measure, template_of
from antibody_llm.screening.upload import open_upload

ANCHORS = SimpleNamespace()  # only whether there are any matters


def loaded(base, adapter=None):
    return LoadedModel(model=None, tokenizer=None, name="model", base=base, adapter=adapter)


@pytest.mark.parametrize(
    ("base", "anchors", "expected"),
    [
        (None, None, "ratio"),
        (None, ANCHORS, "ratio"),
        ("before", None, "shift"),
        ("before", ANCHORS, "feature-shift"),
    ],
)
def test_without_a_wish_the_measure_is_the_best_that_the_model_allows(base, anchors, expected):
    assert chosen_measure(None, loaded(base), anchors) == expected


@pytest.mark.parametrize("wanted", EvidenceKind)
def test_a_wish_is_granted_where_the_model_has_what_it_needs(wanted):
    assert chosen_measure(wanted, loaded("before"), ANCHORS) is wanted


def test_a_wish_without_its_base_or_anchors_names_what_lacks_and_what_would_bring_it():
    with pytest.raises(ModelError, match=r"^model does not say which model it was.*Name it with base"):
        chosen_measure(EvidenceKind.GAP, loaded(None), ANCHORS)
    with pytest.raises(ModelError, match=r"^adapter carries no anchors.*anchor_harmful_data"):
        chosen_measure(EvidenceKind.REFUSAL_FEATURE, loaded("before", adapter="adapter"), None)


def test_the_template_of_an_upload_is_that_of_its_first_row_with_content(tmp_path):
    file = tmp_path / "user.jsonl"
    chat = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]}\n'
    file.write_text(chat % " " + chat % "a")
    assert template_of(open_upload(file)) is Template.CHAT
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    assert template_of(open_upload(file)) is Template.TEXT
    file.write_text(chat % " ")
    with pytest.raises(DataError, match="every row is empty"):
        template_of(open_upload(file))
