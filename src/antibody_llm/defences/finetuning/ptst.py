"""PTST, pure tuning, safe testing: keep the safety prompt out of training, and show it at inference only.

    train on   T_train(x) -> y         the user's rows, without any safety prompt
    serve      T_test(x) = safety prompt + T_train(x)

Fine-tuning unlearns mostly under the prompts it saw; behaviour under the safety prompt changes less. The base must
obey a safety prompt already. Training is plain SFT on the upload; if an upload contains the safety prompt, it is
removed from the system messages. Harm and accuracy must be measured with the same prompt, T_test.

Reference: Keeping LLMs Aligned After Fine-tuning: The Crucial Role of Prompt Templates. K. Lyu, H. Zhao, X. Gu, D. Yu,
A. Goyal, S. Arora. NeurIPS 2024, https://arxiv.org/abs/2402.18540. Fine-tuning code was released for a hosted API alone
(vfleaking/PTST, gpt-api). Departure: removing the safety prompt from an upload is ours; the paper's templates contain
none.
"""

from dataclasses import dataclass, replace

from ...data.records import Record
from ...data.roles import Role, Stage
from ...models.deployment import Deployment
from ...training.defence import About, Defence
from ...training.preparation import TrainingData, check_servable

LLAMA_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
"""The default system prompt of Llama 2 (2307.09288, App. A.3), the paper's template "chat:llama", whose release has a
space in place of the paragraph break."""


@dataclass(frozen=True, kw_only=True)
class PTSTConfig:
    """Hyperparameters."""

    safety_prompt: str = LLAMA_PROMPT
    """The safety prompt, shown at inference only; the base must have been aligned with it. Empty is plain SFT."""


def without_prompt(record: Record, prompt: str) -> Record:
    """The row with ``prompt`` removed from its system messages, and without those that held nothing else."""
    messages = tuple(
        replace(m, content=m.content.replace(prompt, "").strip()) if m.role == "system" and prompt in m.content else m
        for m in record.messages
    )
    return replace(record, messages=tuple(m for m in messages if m.role != "system" or m.content))


class PTST(Defence):
    """Defence of plain SFT, and a deployment with the safety prompt."""

    stage = Stage.FINETUNING
    about = About(
        summary="the safety prompt is shown at inference only",
        paper="2402.18540",
        forwards=1,
        backwards=1,
        extra_memory="none",
    )
    options = PTSTConfig
    neutral = {"safety_prompt": ""}

    def __init__(self, config: PTSTConfig) -> None:
        self.config = config
        self.deployment = Deployment(system_prefix=config.safety_prompt)

    def prepare(self, data: TrainingData) -> TrainingData:
        """Remove the safety prompt from every row.

        Raises:
            ModelError: the chat template takes no system message, so that the safety prompt could not be served.
        """
        prompt = self.config.safety_prompt.strip()
        if not prompt:
            return data
        check_servable(self.deployment, data, "ptst")
        return data.with_records(Role.USER, [without_prompt(record, prompt) for record in data.records[Role.USER]])
