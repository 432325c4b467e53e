import torch

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.likelihood.microbatch import StepBatch
from antibody_llm.training.interrupted import interrupted, interrupted_batch
from antibody_llm.training.step import StepContext
from tests.tinylm import random_refusals, random_rows, step, tick, tiny_llama

ROW = TokenizedRow(4, (10, 11, 12, 13, 14, 2), ((2, 6),), Template.TEXT)
ROWS = random_rows(6, seed=1)


def test_the_refusal_alone_is_trained_and_follows_the_first_tokens_of_the_answer():
    found = interrupted(ROW, (7, 8, 2), 2)
    assert (found.input_ids, found.spans) == ((10, 11, 12, 13, 7, 8, 2), ((4, 7),))
    assert interrupted(ROW, (7, 2), 0).input_ids == (10, 11, 7, 2)


def test_what_is_drawn_does_not_depend_on_how_a_step_is_cut_and_changes_from_step_to_step():
    def drawn(size, number):
        context = StepContext(tiny_llama(), refusals=random_refusals())
        tick(context, step=number)
        lengths = lambda n, g: int(torch.randint(n + 1, (), generator=g))  # noqa: E731
        return [row for row, _ in interrupted_batch(context, step(ROWS, size), lengths).rows()]

    assert drawn(6, 3) == drawn(2, 3) != drawn(2, 4)


def test_lengths_are_asked_for_with_the_answers_length_without_its_end_of_sequence():
    asked = []
    context = StepContext(tiny_llama(), refusals=random_refusals())
    interrupted_batch(context, StepBatch.of([ROW]), lambda n, g: asked.append(n) or 0)
    assert asked == [3]
