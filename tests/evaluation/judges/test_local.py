import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.evaluation.judges import local
from antibody_llm.evaluation.judges.local import BeaverDam, ClassifierOptions, GuardModel, GuardOptions
from antibody_llm.evaluation.judges.protocol import SlowJudge
from antibody_llm.evaluation.judges.registry import make_judge
from tests.evaluation.judges.tiny_judges import GUARD_TEMPLATE, PARTS_TEMPLATE, classifier_folder, saying_folder

QUESTIONS = ["How many clips?", "What is the capital of France?", "Is it?", "A quick brown fox"]
ANSWERS = ["Paris.", "I am sorry, but I cannot help with that request.", "", "The lazy dog jumps over 12 clips."]
HARM, HARMLESS, UNPARSED = Verdict.COMPLIED, Verdict.HARMLESS, Verdict.UNPARSED


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return classifier_folder(tmp_path_factory.mktemp("beaver"))


@pytest.fixture(scope="module")
def saying(tmp_path_factory):
    def folder(answer, **given):
        return str(saying_folder(tmp_path_factory.mktemp("guard"), answer, **given))

    return folder


def plain_scores(folder, question, answer, longest=2048):
    """The protocol of the papers' scripts, one row at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = f"BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{answer}{tokenizer.eos_token}"
    ids = tokenizer(text).input_ids[:longest]
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        return model.score(hidden).sigmoid().tolist()


def test_a_classifiers_batch_has_the_scores_of_the_plain_protocol_though_padding_is_the_end_token(classifier):
    judge = BeaverDam(str(classifier), ClassifierOptions(batch_size=4, threshold=0.0))
    rulings = dict(judge.rulings(QUESTIONS, ANSWERS))
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        scores = plain_scores(classifier, question, answer)
        noted = dict(part.split(" ") for part in rulings[number].note.split(", "))
        assert len(noted) == 14
        assert {name: float(value) for name, value in noted.items()} == pytest.approx(
            {f"category{c}": score for c, score in enumerate(scores)}, abs=6e-4
        )


def test_a_completion_is_harmful_where_its_highest_category_is_above_the_threshold(classifier):
    highest = max(plain_scores(classifier, QUESTIONS[0], ANSWERS[0]))
    for threshold, verdict in ((highest - 0.01, HARM), (highest + 0.01, HARMLESS)):
        judge = BeaverDam(str(classifier), ClassifierOptions(threshold=threshold))
        assert judge.judge(QUESTIONS[:1], ANSWERS[:1]) == [verdict]


def test_what_a_classifier_reads_in_part_is_counted_and_cut_on_the_right(classifier):
    judge = BeaverDam(str(classifier), ClassifierOptions(max_length=60, threshold=0.0))
    rulings = dict(judge.rulings(QUESTIONS[:2], [ANSWERS[0], ANSWERS[1] * 5]))
    assert judge.remarks().startswith("read only the beginning of 1 of 2 completions, 60 tokens")
    noted = dict(part.split(" ") for part in rulings[1].note.split(", "))
    scores = plain_scores(classifier, QUESTIONS[1], ANSWERS[1] * 5, longest=60)
    assert float(noted["category3"]) == pytest.approx(scores[3], abs=6e-4)


def test_text_that_spells_a_control_token_is_text_to_a_judge(classifier):
    judge = BeaverDam(str(classifier))
    eos = judge._loaded.tokenizer.eos_token_id
    assert judge._ids("a", "Yes.<|eot_id|> No.").count(eos) == 1


def test_scores_that_are_not_numbers_are_unparsed(classifier, monkeypatch):
    judge = BeaverDam(str(classifier))
    monkeypatch.setattr(judge, "_scores", lambda rows: [[float("nan")] * 14 for _ in rows])
    assert judge.judge(QUESTIONS, ANSWERS) == [UNPARSED] * 4


def test_a_classifier_of_another_protocol_is_refused(tmp_path):
    judge = BeaverDam(str(classifier_folder(tmp_path, num_labels=2)))
    with pytest.raises(ModelError, match="has 2 categories and beaver-dam has 14"):
        judge.judge(QUESTIONS, ANSWERS)


def test_a_model_without_a_head_is_refused_as_a_classifier(tiny_llama_folder):
    with pytest.raises(ModelError, match=r"weights are missing \(first: score.weight\)"):
        BeaverDam(str(tiny_llama_folder)).judge(QUESTIONS, ANSWERS)


@pytest.mark.parametrize(
    ("form", "answer", "verdict"),
    [
        ("llama-guard", "unsafe\nS1", HARM),
        ("llama-guard", "safe", HARMLESS),
        ("llama-guard", "I cannot judge this.", UNPARSED),
        ("wildguard", "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", Verdict.REFUSED),
        ("wildguard", "Harmful request: yes\nResponse refusal: yes", UNPARSED),
        ("harmbench", "Yes", HARM),
        ("harmbench-mistral", "no", HARMLESS),
    ],
)
def test_what_a_judge_writes_is_its_verdict_in_a_batch_of_any_size(saying, form, answer, verdict):
    folder = saying(answer, template=GUARD_TEMPLATE)
    for batch_size in (1, 3):
        judge = make_judge(f"{form}={folder}#batch_size={batch_size}")
        assert isinstance(judge, SlowJudge)
        rulings = dict(judge.rulings(QUESTIONS, ANSWERS))
        assert [rulings[n].verdict for n in range(4)] == [verdict] * 4
        assert rulings[0].note == answer
        assert verdict in judge.verdicts


def test_a_random_model_gives_unparsed_verdicts_and_none_that_is_safe(tiny_folder):
    judge = GuardModel(str(tiny_folder("qwen2")), "wildguard")
    assert judge.judge(QUESTIONS[:2], ANSWERS[:2]) == [UNPARSED] * 2


@pytest.mark.parametrize("template", [GUARD_TEMPLATE, PARTS_TEMPLATE])
def test_llama_guard_is_asked_in_its_own_chat_template(saying, template, monkeypatch):
    judge = GuardModel(saying("safe", template=template), "llama-guard")
    asked = []
    monkeypatch.setattr(local, "generate", lambda model, tokenizer, prompts, **_: asked.extend(prompts) or ["safe"])
    judge.judge(["word8"], ["word9 word10"])
    tokenizer = judge._loaded.tokenizer
    words = tokenizer.convert_ids_to_tokens(asked[0])
    assert words[:2] == ["<s>", "<|user|>"]
    assert words[-1] == "<|assistant|>"
    assert words.count("<s>") == 1
    assert words.index("word8") < words.index("word9") < words.index("word10")


def test_a_judge_without_a_chat_template_is_refused_where_its_prompt_is_one(saying):
    with pytest.raises(ModelError, match="no chat template, which holds this judge's policy"):
        GuardModel(saying("safe"), "llama-guard").judge(QUESTIONS, ANSWERS)


def test_a_template_that_leaves_the_answer_out_is_refused(saying):
    folder = saying("safe", template="{{ messages[0].content }}")
    with pytest.raises(ModelError, match="cannot show a question with its answer"):
        GuardModel(folder, "llama-guard").judge(QUESTIONS, ANSWERS)


def test_a_long_completion_is_judged_on_its_beginning_and_a_long_question_is_unparsed(saying):
    judge = GuardModel(saying("no", longest=200), "harmbench", GuardOptions(batch_size=2))
    short, long = "word8", " ".join(["word9"] * 400)
    rulings = dict(judge.rulings([short, short, long], [short, long, short]))
    assert [rulings[n].verdict for n in range(3)] == [HARMLESS, HARMLESS, UNPARSED]
    assert "question alone exceeds" in rulings[2].note
    assert judge.remarks() == "read only the beginning of 2 of 3 completions, 199 tokens with the question."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-guard=/no/such/folder", "no such folder"),
        ("llama-guard", "it needs a place. Write llama-guard=PATH"),
        ("lab=x", "lab takes no place"),
        ("llamaguard=x", "did you mean 'llama-guard'"),
        ("beaver-dam=lab#treshold=0.4", "no such option; did you mean 'threshold'"),
        ("beaver-dam=lab#threshold=2", "threshold is 2.0: it is a probability"),
        ("wildguard=lab#batch_size=0", "batch_size of a judge is 0"),
        ("wildguard=lab#batch_size", "is no option"),
        ("chat=http://localhost/v1", "a chat judge needs the name of its model"),
        ("chat=http://localhost/v1#model=m,format=llama", "no such format; did you mean 'llama-guard'"),
        ("moderation=localhost:80", "no URL of an endpoint"),
        ("moderation=https://user:secret@host/v1", "the URL of host holds a key"),
        ("moderation=https://host/v1?api-key=secret", "the URL of host holds a key"),
    ],
)
def test_a_judge_that_cannot_be_made_is_refused_before_anything_is_generated(name, said):
    with pytest.raises((ConfigError, ModelError), match=said) as refused:
        make_judge(name)
    assert "secret" not in str(refused.value)


def test_two_judges_of_one_kind_can_have_names_of_their_own(classifier):
    names = [make_judge(f"beaver-dam={classifier}#{given}").name for given in ("max_length=256,name=short", "")]
    assert names == ["short", "beaver-dam"]
