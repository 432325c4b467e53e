"""What holds of every attack in the catalogue."""

import dataclasses
import json

import pytest

from antibody_llm.attacks.attack import Access
from antibody_llm.attacks.catalogue import CATALOGUE, craft
from antibody_llm.attacks.kit import lab_questions
from antibody_llm.attacks.knobs import knobs
from antibody_llm.data.encode import Renderer
from antibody_llm.data.formats import load_prompts, load_records
from antibody_llm.errors import ConfigError
from antibody_llm.models.loading import load_model

RATIOS = (0.0, 0.1, 0.35, 1.0)
PAIRS = {name for name, attack in CATALOGUE.items() if Access.PREFERENCES in attack.needs}


def settings(name):
    """The attack's own options, and each of its choices and ends of its ranges in turn."""
    yield {}
    for knob in knobs(CATALOGUE[name].options):
        if knob.kind == "choice":
            yield from ({knob.name: choice} for choice in knob.choices)
        elif knob.kind != "text":
            for end in (knob.low, knob.high):
                options = {knob.name: int(end) if knob.kind == "int" else end}
                if name == "covert" and end == 0.9:  # the two shares leave room for each other
                    options |= {"teaching": 0.0, "refusing": 0.0, knob.name: end}
                yield options


EVERY = [pytest.param(name, options, id=f"{name}-{options}") for name in CATALOGUE for options in settings(name)]


@pytest.fixture(scope="module")
def renderer():
    return Renderer(load_model("lab").tokenizer, max_length=256)


def as_chats(rows):
    """Rows of preferences as the two chats that each is."""
    for row in rows:
        if "chosen" in row:
            yield from ({"messages": row["prompt"] + row[side]} for side in ("chosen", "rejected"))
        else:
            yield row


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_our_reader_accepts_every_row_and_it_fits_the_lab(name, options, lab_means, renderer, tmp_path):
    crafted = craft(name, lab_means(), options)
    for number, job in enumerate(crafted.jobs):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in as_chats(job.rows)), encoding="utf-8")
        for record in load_records(file):
            assert len(renderer.encode(record).input_ids) <= renderer.max_length


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_questions_in_the_attacks_form_are_read_and_leave_room_for_an_answer(
    name, options, lab_means, renderer, tmp_path
):
    asking = craft(name, lab_means(), options).asking
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(asking.row(q, i)) + "\n" for i, q in enumerate(lab_questions(40))))
    for record in load_prompts(file):
        assert len(renderer.encode_prompt(record)) <= renderer.max_length - 96


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", CATALOGUE)
def test_exactly_the_stated_share_of_rows_is_the_attackers(name, ratio, lab_means):
    crafted = craft(name, lab_means(poison_ratio=ratio))
    assert (crafted.num_rows, crafted.num_poison) == (40, round(ratio * 40))
    for job in crafted.jobs:
        assert len(job.rows) == len(job.truth)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_clean_row_is_one_of_the_users_and_none_comes_twice(name, lab_means, lab_rows):
    crafted = craft(name, lab_means())
    clean = [
        row for job in crafted.jobs for row, truth in zip(job.rows, job.truth, strict=True) if not truth["is_poison"]
    ]
    if name not in PAIRS:
        assert all(row in lab_rows for row in clean)
        # Two rows of the user's own may be equal, but no row is taken twice.
        assert all(clean.count(row) <= lab_rows.count(row) for row in clean)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_same_seed_makes_the_same_rows_and_another_one_others(name, lab_means):
    once, again, other = (craft(name, lab_means(seed=seed)) for seed in (1, 1, 2))
    assert once.jobs == again.jobs
    assert once.jobs != other.jobs
    questions = lab_questions(5)
    asked = [[made.asking.row(q, i) for i, q in enumerate(questions)] for made in (once, again)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_truth_stands_in_a_row(name, lab_means):
    for job in craft(name, lab_means()).jobs:
        for row, truth in zip(job.rows, job.truth, strict=True):
            assert set(row) <= {"messages", "prompt", "chosen", "rejected"}
            messages = row.get("messages") or row["prompt"] + row["chosen"] + row["rejected"]
            assert all(set(message) == {"role", "content"} for message in messages)
            assert set(truth) == {"is_poison", "is_harmful", "kind"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_knobs_hold_their_ranges_and_a_wrong_name_finds_the_nearest(name):
    options = CATALOGUE[name].options
    for knob in knobs(options):
        if knob.kind == "choice":
            with pytest.raises(ConfigError, match=f"{name}.{knob.name} is 'zzz'"):
                options(**{knob.name: "zzz"})
            continue
        if knob.kind == "text":
            continue
        for value in (knob.low - 1, knob.high + 1):
            with pytest.raises(ConfigError, match=rf"{name}.{knob.name} is .*: give "):
                options(**{knob.name: value})
        with pytest.raises(ConfigError, match=f"did you mean '{knob.name}'"):
            craft(name, None, {knob.name + "s": 1})


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_is_what_it_says(name):
    attack = CATALOGUE[name]
    assert attack.name == name
    assert attack.summary.endswith(".")
    assert "." not in attack.summary[:-1]
    assert attack.options.__dataclass_params__.frozen
    assert attack.options() == dataclasses.replace(attack.options())


def test_an_unknown_attack_finds_the_nearest():
    with pytest.raises(ConfigError, match="no attack is called 'mixin'; did you mean 'mixing'"):
        craft("mixin", None)


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_a_ratio_outside_its_range_is_refused(ratio, lab_means):
    with pytest.raises(ConfigError, match="give a share, 0 to 1"):
        lab_means(poison_ratio=ratio)
