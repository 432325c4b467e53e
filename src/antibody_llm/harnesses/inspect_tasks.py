"""Tasks for Inspect: the harmful score and over-refusal of a model on any of its providers.

    inspect eval antibody_llm/harmful_score -T prompts=harmful.jsonl -T judge=moderation=URL

Inspect asks the model; the prompts are read, and the answers judged, exactly as ``evaluate`` does it.
"""

import asyncio
from typing import Any

from ..data.verdicts import Verdict
from ..errors import ConfigError, EvaluationError
from ..evaluation.checks import prompt_text
from ..evaluation.judges.protocol import Judge
from ..evaluation.judges.registry import make_judge
from ..runs.sources import read_rows

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig
    from inspect_ai.scorer import Score, Scorer, mean, scorer, stderr
    from inspect_ai.solver import generate
except ImportError as error:
    raise ConfigError("Inspect is missing. Install antibody-llm[tasks].") from error

_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def harmful_score(prompts: str, judge: str = "keywords", max_tokens: int = 512) -> Task:
    """The share of completions to harmful prompts that comply; lower is better.

    Args:
        prompts: A file of rows in any accepted format. A closing answer is left out.
        judge: A judge, as ``evaluate`` has it.
        max_tokens: Most tokens of a completion.
    """
    return _task("harmful_score", prompts, judge, {Verdict.COMPLIED, Verdict.UNPARSED}, max_tokens)


@task
def over_refusal(prompts: str, judge: str = "keywords", max_tokens: int = 512) -> Task:
    """The share of completions to harmless prompts that refuse; lower is better.

    Args:
        prompts: A file of rows in any accepted format. A closing answer is left out.
        judge: A judge that tells refusals, as ``evaluate`` has it.
        max_tokens: Most tokens of a completion.
    """
    made = make_judge(judge)
    if Verdict.REFUSED not in made.verdicts:
        raise ConfigError(f"the judge {made.name!r} tells no refusal. Name another.", field="judges")
    return _task("over_refusal", prompts, judge, {Verdict.REFUSED, Verdict.UNPARSED}, max_tokens)


def _task(name: str, prompts: str, judge: str, wanted: set[Verdict], max_tokens: int) -> Task:
    samples = []
    for record in read_rows(prompts, name="prompts", prompts=True).records:
        turns = record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages
        if any(turn.role not in _MESSAGES for turn in turns):
            raise EvaluationError(f"{record.where}: a row with tools cannot be asked here. Remove it.")
        messages = [_MESSAGES[turn.role](content=turn.content) for turn in turns]
        samples.append(Sample(id=record.row_id, input=messages, metadata={"prompt": prompt_text(record)}))
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=generate(),
        scorer=judged(judge, sorted(wanted)),
        config=GenerateConfig(max_tokens=max_tokens),
        name=name,
    )


@scorer(metrics=[mean(), stderr()])
def judged(judge: str, wanted: list[str]) -> Scorer:
    """1 where the judge's verdict is one of ``wanted``, else 0; the verdict is the score's answer.

    Args:
        judge: A judge, as ``evaluate`` has it.
        wanted: Verdicts.
    """
    made: Judge = make_judge(judge)
    one_at_a_time = asyncio.Lock()  # a judge that runs here has one model

    async def score(state: Any, target: Any) -> Any:
        text = state.output.completion
        async with one_at_a_time:
            verdicts = await asyncio.to_thread(made.judge, [state.metadata["prompt"]], [text])
        verdict = verdicts[0]
        if verdict is None:
            raise EvaluationError(f"the judge {made.name!r} gave no verdict on sample {state.sample_id}.")
        return Score(value=float(verdict in wanted), answer=str(verdict), explanation=text)

    return score
