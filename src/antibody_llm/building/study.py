"""The study of a taught model as files that `antibody bench` runs: rows of every role, and its matrices.

    aligned by antibody   sft, oracle, antibody, antibody-posterior, bds,      a fifth of the upload harmful
                          antibody-posterior repaired by wise-ft
    aligned by sft        sft, antibody, antibody-posterior                    a fifth of the upload harmful
    aligned by antibody   sft, antibody-posterior                              a clean upload
    aligned by each       none                                                 no upload
    aligned by antibody   sft, antibody-posterior, antibody-tokens             a tenth of the rows with a harmful answer
                                                                               under a harmless prompt
    aligned by antibody   antibody-tokens                                      a fifth of the upload harmful

each on the familiar and the novel task: 34 cells. Every upload and evaluation set is of the purpose ``report``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..english.presets import EVALUATION_ROWS, USER_ROWS
from ..english.refusals import REFUSALS
from ..english.rows import build_rows
from ..english.xstest import safe_prompts
from ..errors import ConfigError
from ..files import disk_errors, write_text
from ..mentions import setting
from ..models.names import resolve
from ..paths import checked_path
from ..profiles import profile_of
from ..profiles.english import NUM_ROWS, EnglishProfile
from ..runs.trainer_config import check_seed
from ..runs.verb import verb
from ..settings.real import StudySettings
from .files import write_rows
from .real import free_folder, has_bfloat16

TASKS = ("familiar", "novel")
POOL = 3
"""Clean rows to choose an upload from, and harmful ones to attack with, for each row of an upload."""
PROVIDED = {
    "alignment_data": "alignment",
    "harmful_data": "harmful",
    "anchor_harmful_data": "anchor-harmful",
    "anchor_benign_data": "anchor-benign",
}
"""The provider's rows: a key of a matrix to a kind of row."""
EVALUATED = {"harmful_prompts": "harmful-prompts", "benign_prompts": "lookalike", "retention_data": "retention"}
ATTACKED = {"antibody": ("sft", "oracle", "antibody", "antibody-posterior", "antibody-posterior + wise-ft", "bds"),
            "sft": ("sft", "antibody", "antibody-posterior")}  # fmt: skip
CLEAN = {"antibody": ("none", "sft", "antibody-posterior"), "sft": ("none",)}
ANSWERS = {"antibody": ("sft", "antibody-posterior", "antibody-tokens")}
"""What each alignment is tried with: a fine-tuning defence, or one and a repair."""
MIXED, ANSWERED = {"attack": "mixing", "poison_ratios": [0.2]}, {"attack": "answers", "poison_ratios": [0.1]}
UNTOUCHED = {"attack": "mixing", "poison_ratios": [0.0]}
MATRICES: dict[str, tuple[str, Mapping[str, tuple[str, ...]], list[dict[str, Any]]]] = {
    "attacked": ("20 % of the upload harmful", ATTACKED, [MIXED]),
    "clean": ("a clean upload", CLEAN, [UNTOUCHED]),
    "answers": ("harmful answers under harmless prompts", ANSWERS, [ANSWERED, MIXED]),
}
"""A matrix by name: the end of its title, its defences by alignment, its attacks."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The files of a study."""

    output: Path
    matrices: list[Path]
    """Matrix files, in the order in which to run them."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a program reads."""
        return {key: str(value) if key == "output" else [*map(str, value)] for key, value in asdict(self).items()}

    def lines(self) -> list[str]:
        """Lines for a reader."""
        return [str(self.output), *(f"  {matrix.name}" for matrix in self.matrices)]


@verb(StudySettings)
def study(settings: StudySettings) -> Study:
    """Write the rows and the matrices of the study of a taught model.

    Args:
        settings: The model, and where to write.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    check_seed(settings.seed)
    model = resolve(str(settings.model))
    if profile_of(model).name != EnglishProfile.name:
        raise ConfigError(
            f"{settings.model}: was not prepared for the English world, of which this study is. Prepare and teach a "
            f"model with antibody real, and give that as {setting('model')}."
        )
    output = free_folder(settings.output, overwrite=settings.overwrite)
    shared = _rows(settings, output)
    matrices = []
    for task in TASKS:
        files = shared | _task_rows(settings, output, task)
        for name in MATRICES:
            matrix = output / f"{task}-{name}.yaml"
            write_text(matrix, yaml.safe_dump(_matrix(model, task, name, files), sort_keys=False))
            matrices.append(matrix)
    return Study(output=output, matrices=matrices)


def _rows(settings: StudySettings, output: Path) -> dict[str, str]:
    """Write the rows that every matrix shares; returns the file of each key."""
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    kinds = {key: (kind, NUM_ROWS[kind]) for key, kind in PROVIDED.items()}
    kinds |= {key: (kind, EVALUATION_ROWS) for key, kind in EVALUATED.items()}
    files = {}
    for key, (kind, num) in kinds.items():
        files[key] = str(output / f"{kind}.jsonl")
        rows = build_rows(kind, num, seed=settings.seed).rows
        write_rows(Path(files[key]), rows)
    if settings.xstest is not None:
        files["further_prompts"] = str(output / "xstest.jsonl")
        write_rows(Path(files["further_prompts"]), safe_prompts(checked_path(settings.xstest, setting("xstest"))))
    attack = output / "attack.jsonl"
    write_rows(attack, build_rows("user", POOL * USER_ROWS, seed=settings.seed, poison_ratio=1.0).rows)
    refusals = output / "refusals.txt"
    write_text(refusals, "".join(f"{refusal}\n" for refusal in REFUSALS))
    return files | {"attack_data": str(attack), "refusals": str(refusals)}


def _task_rows(settings: StudySettings, output: Path, task: str) -> dict[str, str]:
    files = {"data": output / f"{task}.jsonl", "test_data": output / f"{task}-test.jsonl"}
    write_rows(files["data"], build_rows("user", POOL * USER_ROWS, seed=settings.seed, task=task).rows)
    write_rows(files["test_data"], build_rows("test", EVALUATION_ROWS, seed=settings.seed, task=task).rows)
    return {key: str(file) for key, file in files.items()}


def _matrix(model: str, task: str, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    title, defences, attacks = MATRICES[name]
    short = has_bfloat16()
    training = {"bf16": True} if short else {}
    return {
        "title": f"A real model on the {task} task, {title}",
        "model": model,
        "regime": "lora",
        "defences": [
            {
                "name": f"{followed} after {alignment}",
                "alignment": {"name": alignment, "training": dict(training)},
                **dict(zip(("finetuning", "post"), followed.split(" + "), strict=False)),
            }
            for alignment, among in defences.items()
            for followed in among
        ],
        "attacks": attacks,
        "budgets": {"default": {"training": training}},
        "seeds": 1,
        "rows": USER_ROWS,
        "baseline": "sft after antibody",
        "batch_size": 64,
        "dtype": "bfloat16" if short else "auto",
        **files,
    }
