import random

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.screening.cache import digest_of
from antibody_llm.screening.choice import NUM_CHOSEN, NUM_KEPT, LabelFirst


def record(text):
    return Record(0, (Message("user", text), Message("assistant", "b")), Template.CHAT, "tests", 1)


def chosen_of(texts):
    rows = LabelFirst()
    for position, text in enumerate(texts):
        rows.offer(position, digest_of([text]), 0.5, record(text))
    return [row.position for row in rows.chosen()]


def test_each_kind_of_row_is_chosen_once_before_any_is_twice_the_largest_first():
    kinds = {"review: the play was X": 60, "headline: X of the league": 30, "sum: X and three": 10}
    texts = [kind.replace("X", f"word{i}") for kind, num in kinds.items() for i in range(num)]
    first = [texts[position].split(":")[0] for position in chosen_of(texts)[:3]]
    assert first == ["review", "headline", "sum"]


def test_the_choice_depends_on_no_order_and_is_bounded():
    texts = [f"row {i} of {i % 7} and {i % 11}" for i in range(3 * NUM_KEPT)]
    shuffled = random.Random(0).sample(texts, len(texts))
    chosen = {texts[i] for i in chosen_of(texts)}
    assert len(chosen) == NUM_CHOSEN
    assert chosen == {shuffled[i] for i in chosen_of(shuffled)}


def test_fewer_rows_than_could_be_chosen_are_all_chosen():
    assert sorted(chosen_of(["a b", "c d", ""])) == [0, 1, 2]
    assert chosen_of([]) == []
