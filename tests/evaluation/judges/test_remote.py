import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.evaluation import http
from antibody_llm.evaluation.http import EndpointFailed
from antibody_llm.evaluation.judges.protocol import SlowJudge
from antibody_llm.evaluation.judges.registry import make_judge
from tests.evaluation.scripted import flagged, said, serving

HARM, HARMLESS, UNPARSED = Verdict.COMPLIED, Verdict.HARMLESS, Verdict.UNPARSED


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("ANTIBODY_JUDGE_KEY", raising=False)


def test_a_flagged_completion_is_harmful_and_its_question_is_not_sent():
    with serving(lambda number, path, body: flagged("bad" in body["input"])) as served:
        judge = make_judge(f"moderation={served.url}#model=omni")
        assert isinstance(judge, SlowJudge)
        assert judge.judge(["bad q"] * 3, ["a bad answer", "a fine answer", " "]) == [HARM, HARMLESS, HARMLESS]
        assert dict(judge.rulings(["q"], ["a bad answer"]))[0].note == "violence"
    assert served.calls[0][:2] == ("/v1/moderations", {"model": "omni", "input": "a bad answer"})
    assert len(served.calls) == 3  # the empty one is not sent


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, {"results": []}),
        (200, {}, {"results": [{"flagged": "no"}]}),
        (200, {}, {"results": [{}, {}]}),
        (200, {}, {"results": {"flagged": False}}),
        (200, {}, b"<html>"),
    ],
)
def test_a_moderation_without_its_flag_is_unparsed(answer):
    with serving(lambda *_: answer) as served:
        assert make_judge(f"moderation={served.url}").judge(["q"], ["a"]) == [UNPARSED]


def test_a_chat_judge_reads_one_word_and_is_asked_at_temperature_0_with_both_texts():
    words = {"a0": "HARMFUL", "a1": "Refused.", "a2": "harmless", "a3": "incoherent", "a4": "", "a5": None}

    def script(number, path, body):
        return said(next(word for answer, word in words.items() if f"\n{answer}\n" in body["messages"][0]["content"]))

    with serving(script) as served:
        judge = make_judge(f"chat={served.url}#model=big")
        verdicts = judge.judge(["q"] * 6, list(words))
    assert verdicts == [HARM, Verdict.REFUSED, HARMLESS, Verdict.INCOHERENT, UNPARSED, UNPARSED]
    path, body, _ = served.calls[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("big", 0)


def test_a_served_llama_guard_is_given_the_conversation_and_read_as_one():
    with serving(lambda *_: said("\n\nunsafe\nS2")) as served:
        judge = make_judge(f"chat={served.url}#model=guard,format=llama-guard,name=guard")
        assert judge.judge(["q"], ["a"]) == [HARM]
    assert served.calls[0][1]["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert judge.name == "guard"


def test_a_completion_that_the_endpoint_refuses_is_unparsed_and_the_others_are_judged():
    def script(number, path, body):
        return (400, {}, {"error": "too long"}) if body["input"] == "b" else flagged(False)

    with serving(script) as served:
        judge = make_judge(f"moderation={served.url}")
        rulings = dict(judge.rulings(["q"] * 3, ["a", "b", "c"]))
    assert [rulings[n].verdict for n in range(3)] == [HARMLESS, UNPARSED, HARMLESS]
    assert "too long" in rulings[1].note


def test_a_judge_that_dies_yields_what_it_judged():
    with serving(lambda number, *_: flagged(True) if number < 3 else (503, {}, {})) as served:
        rulings = make_judge(f"moderation={served.url}#concurrency=1").rulings(["q"] * 9, ["a"] * 9)
        assert [next(rulings)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(EndpointFailed, match="status 503"):
            next(rulings)


def test_the_key_of_a_judge_is_its_own_environment_variable(monkeypatch):
    monkeypatch.setenv("ANTIBODY_JUDGE_KEY", "sk-1")
    with serving(lambda *_: flagged(False)) as served:
        make_judge(f"moderation={served.url}").judge(["q"], ["a"])
    assert served.calls[0][2]["authorization"] == "Bearer sk-1"
