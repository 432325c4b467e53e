"""One small run through the real Trainer."""

from pathlib import Path

from trl import SFTConfig

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Message, Record, TokenizedRow
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from antibody_llm.screening.anchors import Anchors, make_anchors
from antibody_llm.training.defence import Defence
from antibody_llm.training.preparation import TrainingData
from antibody_llm.training.trainer import DefendedTrainer
from tests.tinylm import random_refusals, random_rows, tiny_llama, tiny_tokenizer

ROWS = {
    "user": random_rows(22, seed=1),
    "alignment": random_rows(22, seed=2),
    "harmful": random_rows(13, seed=3),
    "benign": random_rows(9, seed=4),
}


def config(folder: Path, **overrides) -> SFTConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    } | overrides
    return SFTConfig(**settings)


def as_record(row: TokenizedRow, completion: str | None = None) -> Record:
    """The text of a row of one turn, which ``tiny_tokenizer`` reads as the same tokens; or with another completion."""
    (start, end), words = row.spans[0], tiny_tokenizer().convert_ids_to_tokens(list(row.input_ids))
    said = " ".join(words[start : end - 1]) if completion is None else completion
    messages = (Message("user", " ".join(words[:start]) + " "), Message("assistant", said))
    return Record(row.row_id, messages, row.template, "tests", row.row_id + 1)


def prepared(defence: Defence, rows: dict[str, list[TokenizedRow]]) -> dict[str, list[TokenizedRow]]:
    """The rows after the defence's ``prepare``, which works on text. Every alignment row then says that it refuses."""
    if type(defence).prepare is Defence.prepare:
        return rows
    records = {
        role: [as_record(row, "sorry no" if role == "alignment" else None) for row in of_role]
        for role, of_role in rows.items()
    }
    renderer = Renderer(tiny_tokenizer(), max_length=128)
    data = defence.prepare(TrainingData(records, tiny_tokenizer(), seed=3))
    return {role: [renderer.encode(record) for record in of_role] for role, of_role in data.records.items()}


def trainer(
    folder: Path, defence: Defence, *, lora: bool = False, model=None, rows=None, **overrides
) -> DefendedTrainer:
    if model is None:
        model = tiny_llama()
    if lora:
        model = add_lora(model, r=4, targets=["q_proj", "v_proj"], seed=0)
    args = config(folder, **overrides)
    before = tiny_llama(seed=9)
    anchors = made_anchors(model, before, rank=args.process_index) if defence.needs_anchors else None
    base = before.to(args.device) if defence.needs_base else None  # the Trainer moves the model alone
    return DefendedTrainer(
        model,
        args,
        defence=defence,
        rows=prepared(defence, rows or ROWS),
        processing_class=tiny_tokenizer(),
        refusals=random_refusals(),
        base=base,
        anchors=anchors,
    )


def made_anchors(model, base, *, rank: int = 0) -> Anchors:
    """Random rows called harmful and benign, as if ``model`` had been aligned from ``base``."""
    reader = ModelReader(model, refusals=random_refusals(), base=base, rank=rank)
    return make_anchors(reader, *anchor_rows())


def anchor_rows() -> tuple[list[TokenizedRow], list[TokenizedRow]]:
    """(harmful, benign): a prompt's last token says which."""
    return tuple(  # type: ignore[return-value]
        [_with_last(row, token) for row in random_rows(12, seed=seed)] for token, seed in ((5, 5), (6, 6))
    )


def _with_last(row: TokenizedRow, token: int) -> TokenizedRow:
    ids = list(row.input_ids)
    ids[row.spans[0][0] - 1] = token
    return TokenizedRow(row.row_id, tuple(ids), row.spans, row.template)


def weights(run: DefendedTrainer) -> dict:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}
