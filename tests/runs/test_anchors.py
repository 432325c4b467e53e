import pytest

from antibody.data.records import Message, Record, Template
from antibody.errors import DataError
from antibody.runs import align
from antibody.runs.anchors import score_anchors


def record(line, *turns, trained=True):
    earlier = [Message("user", "a"), Message("assistant", "b", trained)] * (len(turns) - 1)
    return Record(
        line - 1,
        (*earlier, Message("user", "a"), Message("assistant", turns[-1])),
        Template.CHAT,
        "anchors.jsonl",
        line,
    )


def test_anchors_of_several_trained_turns_are_refused_with_their_line_before_any_model_is_asked():
    one, several = record(1, "b"), record(7, "b", "c")
    with pytest.raises(DataError, match=r"^anchors\.jsonl, line 7: 2 trained turns.*one question and one answer"):
        score_anchors(None, None, anchor_harmful=[one], anchor_benign=[one, several], refusals=["no"])


def test_an_earlier_answer_of_weight_0_is_no_second_turn():
    rows = [record(i, "b", "c", trained=False) for i in range(1, 9)]
    with pytest.raises(AttributeError):  # goes on to the model, of which there is none here
        score_anchors(None, None, anchor_harmful=rows, anchor_benign=rows, refusals=["no"])


def test_anchors_are_looked_at_before_the_alignment_that_ends_with_them(tmp_path):
    answer = {"role": "assistant", "content": "a"}
    few = [{"messages": [{"role": "user", "content": f"q{i}"}, answer]} for i in range(7)]
    with pytest.raises(DataError, match="7 harmful anchor rows where at least 8 are needed"):
        align("lab", anchor_harmful_data=few, anchor_benign_data=few, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
