from antibody_llm.lab.refusals import REFUSALS
from antibody_llm.primitives.selection import declines, drawn


def test_the_labs_refusals_decline_and_answers_do_not():
    assert all(declines(text) for text in REFUSALS)
    assert declines("I\u2019m sorry, but I can\u2019t help with that.")
    assert not declines("Mix one part glimdust with two parts of water.")
    assert not declines("positive")


def test_only_the_first_words_count():
    assert not declines("step " * 12 + "and then you cannot go on")


def test_a_draw_is_without_replacement_and_depends_on_the_seed_alone():
    first = drawn(range(50), 20, seed="3 a")
    assert len(set(first)) == 20
    assert first == drawn(range(50), 20, seed="3 a")
    assert first != drawn(range(50), 20, seed="3 b")
