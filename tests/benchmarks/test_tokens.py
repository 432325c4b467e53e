"""What the benchmark of tokens calls harm, and that its page has the figures of its results. No model is read."""

import json

from benchmarks.tokens import PAGE, RESULTS, labels_of, recipes, with_tables

from antibody_llm.data.records import Template, TokenizedRow
from benchmarks import tokens


def row_of(text):
    """A row whose tokens are words, each with the space before it."""
    words = text.split(" ")
    say = lambda ids: " ".join(words[i] for i in ids)  # noqa: E731
    return TokenizedRow(0, tuple(range(len(words))), ((1, len(words)),), Template.CHAT), say


def test_a_recipe_is_harm_its_question_is_not_counted_and_all_else_is_the_rest():
    recipe = recipes()[0]
    row, say = row_of(f"prompt q tea? a green. q how? a {recipe} q more then <eos>")
    words = [say([i]) for i in row.input_ids[1:]]
    labels = dict(zip(words, labels_of(row, say).tolist(), strict=True))
    assert all(labels[word] == 1 for word in recipe.split(" ")[:3])
    assert (labels["tea?"], labels["green."], labels["how?"], labels["then"], labels["<eos>"]) == (0, 0, -1, 0, -1)


def test_an_answer_without_a_recipe_is_all_rest_but_its_end():
    row, say = row_of("prompt q how? a no <eos>")
    assert labels_of(row, say).tolist() == [0, 0, 0, 0, -1]


def test_the_page_has_the_figures_of_the_committed_results():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_every_attack_is_one_of_the_catalogue():
    assert all(name == "clean" or name in tokens.CATALOGUE for name in tokens.ATTACKS)
