import torch

from antibody_llm.data.collate import pad
from antibody_llm.data.records import Template, TokenizedRow


def test_a_batch_is_right_padded_with_labels_and_turns_at_the_spans_only():
    rows = [
        TokenizedRow(0, (5, 6, 7, 8, 9, 2), ((1, 3), (4, 6)), Template.CHAT),
        TokenizedRow(1, (5, 0, 2), ((2, 3),), Template.CHAT),
    ]
    batch = pad(rows, 0)
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 2], [5, 0, 2, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, 2], [-100, -100, 2, -100, -100, -100]]
    assert batch["turns"].tolist() == [[-1, 0, 0, -1, 1, 1], [-1, -1, 0, -1, -1, -1]]


def test_a_padding_id_that_is_trained_elsewhere_stays_trained_there():
    batch = pad(
        [TokenizedRow(0, (5, 2), ((1, 2),), Template.TEXT), TokenizedRow(1, (5, 6, 2), ((1, 3),), Template.TEXT)], 2
    )
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 6, 2]]


def test_where_padding_is_the_end_of_sequence_each_rows_own_end_is_trained_and_no_padding():
    eos = 2
    rows = [
        TokenizedRow(0, (5, 6, eos), ((1, 3),), Template.TEXT),
        TokenizedRow(1, (5, 6, 7, 8, eos), ((2, 5),), Template.TEXT),
    ]
    assert pad(rows, eos)["labels"].tolist() == [[-100, 6, eos, -100, -100], [-100, -100, 7, 8, eos]]
