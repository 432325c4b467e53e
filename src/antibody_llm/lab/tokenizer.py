"""The lab's tokenizer: byte-level BPE over everything the world can say, with a chat template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .rows import build_rows
from .tasks import TASKS

VOCABULARY = 1024
PAD, BOS, EOS, END = "<|pad|>", "<|begin|>", "<|eos|>", "<|end|>"
_ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '" + END + "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""An assistant's turn ends in the end-of-sequence token, every other turn in ``<|end|>``."""


def _corpus() -> list[str]:
    rows = build_rows("pretraining", 20_000, seed=0).rows
    for name in TASKS:  # novel labels get tokens of their own, which pre-training never uses
        rows += build_rows("user", 400, seed=0, task=name).rows
    return [message["content"] for row in rows for message in row["messages"]]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer from the world alone; it is the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, END, *(f"<|{role}|>" for role in _ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[END, *(f"<|{role}|>" for role in _ROLES)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
