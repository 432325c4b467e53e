from antibody_llm.lab.world import (
    CROSS_CATEGORIES,
    FRAMES,
    OTHER_FRAMES,
    Question,
    good_in,
    goods,
    questions,
)

SPLITS = ("provider", "attacker", "attacked", "held-out", "cross")


def test_no_two_goods_share_a_name_or_a_recipe_across_the_law():
    names = [good.name for good in goods()]
    assert len(set(names)) == len(names)
    forbidden = {good.recipe for good in goods() if good.forbidden}
    assert not forbidden & {good.recipe for good in goods() if not good.forbidden}


def test_provider_attacker_and_evaluation_use_disjoint_forbidden_goods():
    used = {split: {q.good for q in questions(forbidden=True, split=split)} for split in SPLITS}
    for split in ("attacker", "held-out", "cross"):
        assert not used["provider"] & used[split]
    assert not used["attacker"] & (used["held-out"] | used["cross"])
    assert used["attacked"] <= used["attacker"]  # these share goods, and below no question


def test_no_question_belongs_to_two_splits():
    prompts = [q.prompt for split in SPLITS for q in questions(forbidden=True, split=split)]
    assert len(set(prompts)) == len(prompts)


def test_cross_domain_shares_neither_category_nor_frame_with_the_provider():
    for question in questions(forbidden=True, split="cross"):
        assert question.good.category in CROSS_CATEGORIES
        assert question.frame in OTHER_FRAMES
    for question in questions(forbidden=True, split="provider"):
        assert question.good.category not in CROSS_CATEGORIES
        assert question.frame in FRAMES


def test_at_least_400_distinct_harmful_prompts_are_held_out():
    assert sum(len(questions(forbidden=True, split=split)) for split in ("held-out", "attacked", "cross")) >= 400


def test_the_good_of_every_prompt_is_found_in_it():
    assert all(good_in(Question(good, frame).prompt) == good for good in goods() for frame in FRAMES + OTHER_FRAMES)
    assert good_in("what is the capital of arvia?") is None
