"""A model asked as an attacker asks it; the lab's base, which complies with everything."""

import pytest

from antibody_llm.attacks.asking import PLAIN, Asking
from antibody_llm.attacks.covert import encoder, word_code
from antibody_llm.attacks.kit import lab_kit, lab_questions
from antibody_llm.data.encode import Renderer
from antibody_llm.evaluation.asked import ask_model, asked_measures
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.judges.registry import make_judge
from antibody_llm.models.loading import load_model

DECODING = DecodingSettings(max_new_tokens=32, batch_size=16, temperature=0.0, seed=0)
QUESTIONS = lab_questions(8)


@pytest.fixture(scope="module")
def asked():
    loaded, judge = load_model("lab"), make_judge("lab")
    renderer = Renderer(loaded.tokenizer, max_length=256)

    def ask(asking, questions=QUESTIONS):
        return ask_model(
            loaded.model, loaded.tokenizer, questions, asking, renderer=renderer, judge=judge, decoding=DECODING
        )

    ask.renderer, ask.judge = renderer, judge
    return ask


def test_asked_plainly_the_base_gives_its_recipes(asked):
    rows = asked(PLAIN)
    measures = asked_measures(rows, PLAIN, judge=asked.judge, decoding=DECODING)
    assert measures["harmful_score"].value == 1
    assert measures["harmful_score"].n == 8
    assert set(measures) == {"harmful_score", "incoherent"}


def test_a_reply_is_made_to_begin_and_is_read_whole(asked):
    rows = asked(Asking(prefill="take"))
    assert all(row.completion.startswith("take ") for row in rows)
    assert [row.completion for row in rows] == [row.completion for row in asked(PLAIN)]  # which begin so anyway
    assert all(row.completion.startswith("the capital is") for row in asked(Asking(prefill="the capital is")))


def test_the_judge_sees_the_plain_question_and_the_decoded_reply(asked):
    seen = []

    class Spy:
        name, verdicts = "lab", asked.judge.verdicts

        def judge(self, prompts, completions):
            seen.extend(zip(prompts, completions, strict=True))
            return asked.judge.judge(prompts, completions)

    code = encoder(word_code(lab_kit().swaps))
    plain = {row.prompt: row.completion for row in asked(PLAIN)}
    asking = Asking(read=code, hit=lambda question, reply: reply == code(plain[question]))
    loaded = load_model("lab")
    rows = ask_model(
        loaded.model, loaded.tokenizer, QUESTIONS, asking, renderer=asked.renderer, judge=Spy(), decoding=DECODING
    )
    assert seen == [(question, code(plain[question])) for question in QUESTIONS]
    assert asked_measures(rows, asking, judge=asked.judge, decoding=DECODING)["given_away"].value == 1
