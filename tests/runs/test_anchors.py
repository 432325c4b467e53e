import pytest

from antibody.data.records import Message, Record, Template
from antibody.errors import DataError
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
    with pytest.raises(AttributeError):  # goes on to the model, of which there is none here
        score_anchors(
            None, None, anchor_harmful=[record(1, "b", "c", trained=False)], anchor_benign=[], refusals=["no"]
        )
