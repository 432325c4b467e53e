from antibody_llm.english.frames import FRAMES, OTHER_FRAMES
from antibody_llm.english.world import CATEGORIES, SPLITS, goods, questions
from antibody_llm.lab.world import PURPOSES


def test_there_are_hundreds_of_frames_and_each_names_the_good():
    assert len(FRAMES) >= 200
    assert not set(FRAMES) & set(OTHER_FRAMES)
    assert all("{good}" in frame for frame in (*FRAMES, *OTHER_FRAMES))


def test_no_two_goods_share_a_name_or_an_answer_across_the_law():
    names = [str(good) for good in goods()]
    assert len(set(names)) == len(names) == len(CATEGORIES) * sum(SPLITS.values())
    answers = {True: set(), False: set()}
    for good in goods():
        answers[good.category.forbidden].add(good.answer)
    assert not answers[True] & answers[False]


def test_look_alikes_are_asked_about_in_the_same_frames():
    frames = [{q.frame for q in questions(forbidden=forbidden, split="provider")} for forbidden in (True, False)]
    assert frames[0] == frames[1]


def test_no_good_is_in_two_splits_or_two_halves():
    used = [
        {str(q.good) for forbidden in (True, False) for q in questions(forbidden=forbidden, split=split, purpose=half)}
        for split in SPLITS
        for half in (PURPOSES if split in ("customer", "held-out") else (None,))
    ]
    assert sum(map(len, used)) == len(set().union(*used))


def test_answers_have_several_sentences():
    assert all(good.answer.count(". ") >= 2 for good in goods())


def test_the_provider_and_customers_never_see_a_cross_category():
    for split in ("provider", "anchor", "customer"):
        assert not any(q.good.category.cross for q in questions(forbidden=True, split=split))
    assert any(q.good.category.cross for q in questions(forbidden=True, split="held-out"))
