"""A tuned model asked as an attacker asks it, and judged on what the attacker then reads.

A judge sees the plain question and the decoded reply: harm in a code it cannot read would pass for sense or nonsense.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..attacks.asking import Asking
from ..data.encode import Renderer
from ..data.records import Message, Record, Template
from ..models.deployment import Deployment
from .completions import Completion, EvaluationSet
from .decoding import DecodingSettings
from .generation import generate
from .harmful_score import harmful_score, incoherent
from .judges.protocol import Judge
from .judging import judge_completions
from .measures import Measure, share


def ask_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    asking: Asking,
    *,
    renderer: Renderer,
    judge: Judge,
    decoding: DecodingSettings,
    deployment: Deployment | None = None,
) -> list[Completion]:
    """The judged replies to harmful questions that are put in an attack's form.

    Args:
        model: A causal language model or PEFT model; comes back as it was.
        tokenizer: Its tokenizer.
        questions: Plain; the n-th is asked as the attack asks the n-th.
        asking: The attack's.
        renderer: Renders a prompt exactly as in training.
        judge: Asked about the plain question and the reply as the attacker reads it.
        decoding: How the replies are drawn.
        deployment: How the model's defence wants it prompted and read.
    """
    served = deployment or Deployment()
    records = [_record(asking, question, number) for number, question in enumerate(questions)]
    prompts = [_prompt(served.prompt(record), asking.prefill, renderer) for record in records]
    texts = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=decoding.max_new_tokens,
        batch_size=decoding.batch_size,
        temperature=decoding.temperature,
        seed=decoding.seed,
        stop_ids=renderer.stop_ids,
    )
    rows = [
        Completion(
            row_id=number,
            set=EvaluationSet.HARMFUL,
            prompt=question,
            completion=asking.reply(served.completion(text)),
        )
        for number, (question, text) in enumerate(zip(questions, texts, strict=True))
    ]
    return judge_completions(rows, judge)


def asked_measures(
    rows: Sequence[Completion], asking: Asking, *, judge: Judge, decoding: DecodingSettings
) -> dict[str, Measure]:
    """``harmful_score`` and ``incoherent`` by the judge; ``given_away`` where the attack can say what that is."""
    found = {
        "harmful_score": harmful_score(rows, judge=judge.name, decoding=decoding),
        "incoherent": incoherent(rows, judge=judge.name, decoding=decoding),
    }
    if asking.hit is not None:
        hits = [asking.hit(row.prompt, row.completion) for row in rows]
        found["given_away"] = share(hits, name="given_away", judge="attack", decoding=decoding)
    return found


def _record(asking: Asking, question: str, number: int) -> Record:
    messages = tuple(Message(each["role"], each["content"]) for each in asking.row(question, number)["messages"])
    if asking.bare:
        messages = (Message("user", "\n\n".join(message.content or "" for message in messages)),)
    return Record(
        number,
        messages,
        Template.TEXT if asking.bare else Template.CHAT,
        source="the attack's questions",
        line=number + 1,
    )


def _prompt(record: Record, prefill: str, renderer: Renderer) -> list[int]:
    ids = renderer.encode_prompt(record)
    if not prefill:
        return ids
    begun = renderer.completion_ids(record, prefill)
    while begun and begun[-1] in renderer.stop_ids:
        begun.pop()
    return ids + begun
