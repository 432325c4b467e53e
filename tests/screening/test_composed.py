from collections import Counter

from tests.tinylm import random_refusals, tiny_llama
from tests.training.helpers import made_anchors

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.screening.composed import FOLDS, HARM, NEITHER, REST, composed

ANCHORS = made_anchors(tiny_llama(seed=0), tiny_llama(seed=9))
"""12 rows of each label; every prompt of a label ends with the same token."""
ROWS = composed(ANCHORS, random_refusals())


def said(row: TokenizedRow) -> tuple[int, ...]:
    return row.input_ids[row.spans[0][0] : row.spans[0][1] - 1]


HARMFUL = {said(row) for row in ANCHORS.rows[: ANCHORS.num_harmful]}
HARMLESS = {said(row) for row in ANCHORS.rows[ANCHORS.num_harmful :]}


def test_a_harmful_anchor_has_four_rows_and_a_harmless_one_six():
    assert len(ROWS) == 12 * 4 + 12 * 6
    assert sum(row.harmful for row in ROWS) == 12 * 3
    assert [row.row.row_id for row in ROWS] == list(range(len(ROWS)))
    assert composed(ANCHORS, random_refusals()) == ROWS  # the same every time


def test_what_is_labelled_harm_is_the_whole_answer_of_a_harmful_anchor_and_nothing_else_is():
    for answer in ROWS:
        tokens = answer.row.input_ids[slice(*answer.row.spans[0])]
        assert len(answer.labels) == len(tokens)
        assert answer.labels[-1] == NEITHER  # ends the turn
        harm = tuple(token for token, label in zip(tokens, answer.labels, strict=True) if label == HARM)
        assert not harm or harm in HARMFUL


def test_harm_stands_under_both_kinds_of_prompt_and_within_harmless_answers():
    ends = {
        row.input_ids[row.spans[0][0] - 1]: label for row, label in zip(ANCHORS.rows, "h" * 12 + "b" * 12, strict=True)
    }
    kinds = Counter(
        (ends[row.row.input_ids[row.row.spans[0][0] - 1]], REST in row.labels) for row in ROWS if row.harmful
    )
    assert kinds == {("h", False): 12, ("b", False): 12, ("b", True): 12}


def test_no_answer_of_one_fold_is_in_another():
    folds: dict[tuple[int, ...], set[int]] = {}
    for answer in ROWS:
        tokens = answer.row.input_ids[slice(*answer.row.spans[0])]
        harm = tuple(token for token, label in zip(tokens, answer.labels, strict=True) if label == HARM)
        if harm:
            folds.setdefault(harm, set()).add(answer.fold)
    assert all(len(of) == 1 for of in folds.values())
    assert {fold for of in folds.values() for fold in of} == set(range(FOLDS))


def test_a_row_longer_than_the_model_reads_is_left_out():
    short = composed(ANCHORS, random_refusals(), longest=15)
    assert 0 < len(short) < len(ROWS)
    assert max(len(answer.row.input_ids) for answer in short) <= 15


def test_the_words_of_a_prompt_are_without_what_all_prompts_begin_and_end_with():
    embedding = [answer for answer in ROWS if answer.harmful and REST in answer.labels]
    asked = {
        tuple(
            t
            for t, x in zip(answer.row.input_ids[answer.row.spans[0][0] :], answer.labels[:-1], strict=False)
            if x == NEITHER
        )
        for answer in embedding
    }
    harmful = ANCHORS.rows[: ANCHORS.num_harmful]
    prompts = {row.input_ids[: row.spans[0][0]] for row in harmful}
    assert asked == prompts  # of these anchors the two labels end differently, and nothing is common
    assert {row.template for row in harmful} == {Template.TEXT}


def test_a_row_knows_whether_its_prompt_asks_for_harm():
    harmful = {row.input_ids[: row.spans[0][0]] for row in ANCHORS.rows[: ANCHORS.num_harmful]}
    assert all(row.asked_for_harm == (row.row.input_ids[: row.row.spans[0][0]] in harmful) for row in ROWS)
    assert sum(row.asked_for_harm for row in ROWS) == 12 * 2 + 12
