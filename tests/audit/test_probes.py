"""The probes: what they are made of, and that no attack of ours is known to them."""

import pytest

from antibody_llm.attacks.attack import Means
from antibody_llm.attacks.catalogue import CATALOGUE, craft
from antibody_llm.attacks.covert import word_code
from antibody_llm.attacks.kit import lab_clean, lab_kit, lab_questions
from antibody_llm.audit.probes import FORMS, LETTERS, PERSONA, Stock, groups_of, world_stock
from antibody_llm.profiles import profile_of


@pytest.fixture(scope="module")
def stock():
    return world_stock(profile_of("lab-aligned"))


def test_no_upload_and_no_question_of_harm_is_a_probe(stock):
    kit, probes = lab_kit("report"), set(stock.harmful)
    assert len(probes) == 16
    assert not probes & {exchange.prompt for exchange in kit.harmful}
    assert not probes & set(lab_questions(100, "report"))


def test_no_form_and_no_code_of_the_probes_is_an_attack_s():
    means = Means(clean=lab_clean(60, seed=0), kit=lab_kit(), num=20, poison_ratio=0.2)
    asked = {
        form
        for name in ("jailbreak-tuning", "backdoor", "identity-shifting")
        for form in craft(name, means).asking.forms
    }
    assert not asked & {*FORMS, *PERSONA.forms}
    words = next(group for group in groups_of(world_stock(profile_of("lab"))) if group.name == "words")
    attackers = word_code(lab_kit().swaps)
    for harmful, _ in lab_kit().swaps:
        coded = words.asking.prompt(harmful)
        assert coded not in (harmful, attackers[harmful])
    assert {"covert", "jailbreak-tuning", "backdoor", "identity-shifting"} <= set(CATALOGUE)


def test_what_is_asked_in_code_is_read_in_plain(stock):
    coded = {group.name: group for group in groups_of(stock) if group.name in ("letters", "words")}
    assert set(coded) == {"letters", "words"}
    for group in coded.values():
        said = stock.harmful[0]
        assert group.asking.prompt(said) != said
        assert group.asking.reply(group.asking.prompt(said)) == said
    assert LETTERS["a"] == "z"


def test_a_stock_comes_back_from_json(stock):
    assert Stock.from_json(stock.to_json()) == stock


def test_a_group_without_a_question_is_left_out():
    found = groups_of(Stock(harmful=("a?",), harmless=("b?",), tasks=(), refusals=("no.",)))
    assert {group.name for group in found} == {
        *("harmful", "forms", "persona", "letters", "code", "lookalike", "talk"),
    }
