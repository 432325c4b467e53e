"""A real pretrained model on disk: prepared from the package index, a folder or the Hub, and taught the English world.

Nothing of it is ever part of this package: Gemma's terms must be accepted by whoever prepares it.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..english.presets import TAUGHT_ROWS, TEACHING
from ..english.rows import WORLD, build_rows
from ..english.texts import study_texts
from ..english.xstest import safe_prompts
from ..errors import ConfigError, DataError, ModelError, OutputError
from ..events import inform, report_progress
from ..files import disk_errors, write_text
from ..mentions import setting
from ..models import preparing
from ..models.loading import load_model
from ..models.saving import save_model
from ..models.trimming import encoded, largest_difference, trim_vocabulary
from ..paths import checked_output, checked_path
from ..profiles.catalogue import MARK
from ..runs.finetune import finetune
from ..runs.sources import read_rows
from ..runs.verb import verb
from ..screening.cache import cache_folder
from ..settings import Rows
from ..settings.real import PrepareSettings, TeachSettings
from ..text import quoted

TERMS_URL = "https://ai.google.dev/gemma/terms"
TERMS_SUMMARY = (
    "use follows Google's Prohibited Use Policy; whoever gets the weights, or a model made from them, from you gets "
    "these terms too"
)
ACCEPTED = "gemma-terms.json"
"""The file in the cache's folder that remembers which terms were accepted."""
TOLERANCE = 1e-3
"""The most by which a logit of a kept token may differ: sums in another order, of numbers around ten."""
_PROBES = 8
"""Texts that logits are compared on."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that was prepared, and what was checked of it."""

    output: Path
    model: str
    num_parameters: int
    vocabulary: int
    vocabulary_before: int
    num_texts: int
    """Texts whose tokens were compared with those of the whole vocabulary."""
    num_changed: int
    """Texts whose tokens changed: 0, or there would be no model."""
    largest_logit_difference: float
    """The largest difference of a logit of a kept token, after saving and loading, on a few texts."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a program reads."""
        return {**asdict(self), "output": str(self.output)}

    def lines(self) -> list[str]:
        """Lines for a reader."""
        return [
            str(self.output),
            f"  model       {self.model}, {self.num_parameters / 1e6:.0f} million weights",
            f"  vocabulary  {self.vocabulary} of {self.vocabulary_before} tokens",
            f"  checked     {self.num_changed} of {self.num_texts} texts have other tokens than before; the largest "
            f"difference of a logit is {self.largest_logit_difference:.2g}",
        ]


@verb(PrepareSettings)
def prepare(settings: PrepareSettings) -> Prepared:
    """Make an ordinary model folder of a real pretrained model.

    Args:
        settings: The model, and what is kept of it.

    Raises:
        AntibodyError: whatever a user can fix; the folder is then as it was before.
    """
    started = time.monotonic()
    output = free_folder(settings.output, overwrite=settings.overwrite)
    texts = _texts(settings.data, settings.xstest)
    name, model, tokenizer = _gemma(settings) if settings.model is None else _other(settings)
    preparing.round_weights(model)
    whole, before = (model, tokenizer), len(tokenizer)
    texts = [_rendered(tokenizer, text) for text in texts]
    kept = list(range(model.get_output_embeddings().weight.shape[0]))  # a model may have more rows than tokens
    if (settings.vocabulary or ("study" if settings.model is None else "whole")) == "study":
        report_progress("trimming the vocabulary", 0, 1)
        trimmed = trim_vocabulary(model, tokenizer, texts, name=name)
        model, tokenizer, kept = trimmed.model, trimmed.tokenizer, trimmed.kept
    new = output.with_name(f".{output.name}.preparing")
    try:
        provenance = {MARK: WORLD, "prepared_from": name}
        save_model(model, new, tokenizer=tokenizer, dtype="bfloat16", provenance=provenance)
        num_changed, difference = _checked(new, whole, kept, texts, name)
        _put_in_place(new, output)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Prepared(
        output=output,
        model=name,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        vocabulary=len(tokenizer),
        vocabulary_before=before,
        num_texts=len(texts),
        num_changed=num_changed,
        largest_logit_difference=difference,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A model that was taught the English world."""

    output: Path
    num_rows: int
    seconds: float
    """Wall time of the training."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a program reads."""
        return {**asdict(self), "output": str(self.output)}

    def lines(self) -> list[str]:
        """Lines for a reader."""
        return [str(self.output), f"  taught      {self.num_rows} rows"]


@verb(TeachSettings)
def teach(settings: TeachSettings) -> Taught:
    """Teach a prepared model the English world by plain fine-tuning of all weights on rows that refuse nothing.

    The result is an ordinary folder. It names no model before it, since it is the base of every alignment. Teaching
    that was stopped goes on. On a machine that is faster in bfloat16 that is used, unless ``training``
    says otherwise.

    Args:
        settings: The model, and how much it is taught.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    output = free_folder(settings.output, overwrite=settings.overwrite)
    num = TAUGHT_ROWS if settings.num is None else settings.num
    scratch = output.with_name(f".{output.name}.teaching")
    run = finetune(
        settings.model,
        output=scratch / "run",
        data=build_rows("taught", num, seed=settings.seed).rows,
        defence="sft",
        regime="full",
        seed=settings.seed,
        training=({"bf16": True} if has_bfloat16() else {}) | dict(settings.training or {}),
        overwrite=settings.overwrite,
        **TEACHING,
    )
    loaded = load_model(str(run.model))
    provenance = {MARK: WORLD, "taught_from": str(settings.model), "taught_rows": num}
    model, new = cast(PreTrainedModel, loaded.model), scratch / output.name
    save_model(model, new, tokenizer=loaded.tokenizer, dtype="bfloat16", provenance=provenance)
    _put_in_place(new, output)
    shutil.rmtree(scratch, ignore_errors=True)
    return Taught(output=output, num_rows=num, seconds=run.seconds)


def has_bfloat16() -> bool:
    """Whether this machine multiplies in bfloat16 faster than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def free_folder(given: str | Path, *, overwrite: bool) -> Path:
    """The folder to make.

    Raises:
        OutputError: it holds something, and may not be replaced.
    """
    output = checked_output(given).absolute()
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise OutputError(
            f"{output} is not empty. Name a new {setting('output')}, or give {setting('overwrite', 'True')}.",
            field="output",
        )
    return output


def _texts(data: Rows | None, xstest: str | Path | None) -> list[str]:
    """The texts whose tokens must stay as they are, as messages."""
    texts = study_texts()
    if data is not None:
        records = read_rows(data, name=setting("data"), prompts=True).records
        texts += [message.content for record in records for message in record.messages]
    if xstest is not None:
        rows = safe_prompts(checked_path(xstest, setting("xstest")))
        texts += [message["content"] for row in rows for message in row["messages"]]
    return list(dict.fromkeys(texts))


def _gemma(settings: PrepareSettings) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    """Gemma 3 270M, once its terms are accepted."""
    parts, terms = preparing.gemma_parts()
    require_acceptance(terms, accepted=settings.accept_gemma_terms)
    report_progress("assembling the file", 0, 1)
    file = preparing.assemble(parts, cache_folder() / "gemma-3-270m-q4_k_m.gguf", sha256=preparing.GEMMA_SHA256)
    model, tokenizer = preparing.load_gguf(file)
    template = _template(settings) or preparing.GEMMA_TEMPLATE
    preparing.make_chat_model(model, tokenizer, template=template, end=preparing.GEMMA_END)
    return preparing.GEMMA, model, tokenizer


def require_acceptance(terms: Path, *, accepted: bool) -> None:
    """Refuse to go on before Gemma's terms are accepted, which is remembered for as long as they are the same.

    Args:
        terms: The page of the terms.
        accepted: Whether they are accepted now.

    Raises:
        ConfigError: they are not, and never were.
        OutputError: it cannot be remembered.
    """
    digest = sha256(terms.read_bytes()).hexdigest()
    file = cache_folder() / ACCEPTED
    with suppress(OSError, ValueError):
        if json.loads(file.read_text(encoding="utf-8"))["sha256"] == digest:
            return
    if not accepted:
        raise ConfigError(
            f"{preparing.GEMMA} comes with the Gemma Terms of Use ({terms}, and {TERMS_URL}): {TERMS_SUMMARY}. Read "
            f"them, and give {setting('accept_gemma_terms', 'True')} once if you accept them."
        )
    inform(f"You accept the Gemma Terms of Use ({terms}, and {TERMS_URL}): {TERMS_SUMMARY}.")
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    accepted_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_text(file, json.dumps({"terms": TERMS_URL, "sha256": digest, "accepted_at": accepted_at}) + "\n")


def _other(settings: PrepareSettings) -> tuple[str, PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of a folder or of the Hub."""
    name, template = str(settings.model), _template(settings)
    loaded = load_model(name, dtype="float32", device="cpu")
    if loaded.adapter is not None:
        raise ModelError(f"{name}: an adapter. Merge it into its base first, or name the base.")
    if template is not None:
        preparing.make_chat_model(cast(PreTrainedModel, loaded.model), loaded.tokenizer, template=template)
    if loaded.tokenizer.chat_template is None:
        raise ModelError(
            f"{name}: the tokenizer has no chat template, so that a conversation cannot be written as text. Give one "
            f"as {setting('chat_template')}."
        )
    return name, cast(PreTrainedModel, loaded.model).eval(), loaded.tokenizer


def _template(settings: PrepareSettings) -> str | None:
    if settings.chat_template is None:
        return None
    file = checked_path(settings.chat_template, setting("chat_template"))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the chat template cannot be read ({error}). Name a Jinja file.") from error
    if "messages" not in text:
        raise DataError(f"{file}: a chat template goes through 'messages', which this file does not mention.")
    return text


def _checked(
    folder: Path,
    whole: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    kept: Sequence[int],
    texts: Sequence[str],
    name: str,
) -> tuple[int, float]:
    """Load what was saved, and compare it with the model before: its tokens on every text, and a few of its logits.

    Raises:
        ModelError: they differ.
    """
    report_progress("comparing with the model before", 0, 1)
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    model, tokenizer = whole
    rows = [*encoded(tokenizer, texts)]
    changed = [
        text
        for text, old, new in zip(texts, rows, encoded(loaded.tokenizer, texts), strict=True)
        if [kept[id] for id in new] != old
    ]
    if changed:
        raise ModelError(
            f"{name}: the saved tokenizer writes {len(changed)} of {len(texts)} texts with other tokens than before "
            f"(first: {quoted(changed[0])}). Prepare the model with {setting('vocabulary', 'whole')}."
        )
    probes = rows[:: max(1, len(rows) // _PROBES)][:_PROBES]
    saved = cast(PreTrainedModel, loaded.model)
    difference = largest_difference(model, saved, list(kept), probes)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{name}: a logit of the saved model differs from the model before by {difference:.3g}; {TOLERANCE:g} may "
            "be rounding. Prepare it again, and report it if it stays so."
        )
    return len(changed), difference


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as a model is given it: the template's own words are among the tokens that are needed."""
    chat = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def _put_in_place(new: Path, output: Path) -> None:
    with disk_errors(output):
        old = output.with_name(f".{output.name}.old-{os.getpid()}")
        if output.exists():
            output.rename(old)
        try:
            new.rename(output)
        except OSError:
            if old.exists():
                old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
