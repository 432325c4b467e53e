"""Our alignment defences for TamperBench, in its configuration format.

TamperBench keeps the names of defences in an enumeration. Add one line to its ``utils/names.py`` and one to its
``defenses/__init__.py``, as its guide has it:

    ANTIBODY = "antibody"
    from antibody_llm.harnesses import tamperbench as _antibody

After that ``configs/whitebox/defenses/antibody/grid.yaml`` may hold, beside TamperBench's own fields,

    base:
        defence: booster
        alignment_data: refusals.jsonl
        harmful_data: harmful.jsonl
        options: {alpha: 0.1}

and a sweep may search ``options.alpha``. Written from DEFENSES.md and CONTRIBUTING.md of criticalml-uw/TamperBench.
Only defences of the alignment stage have a place there: its attacker owns the weights and the training loop, which
defences of the fine-tuning stage need.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..errors import ConfigError
from ..models.loading import load_model
from ..models.saving import save_model
from ..runs.align import align

try:
    from tamperbench.whitebox.defenses.defense import AlignmentDefense, AlignmentDefenseConfig
    from tamperbench.whitebox.defenses.registry import register_defense
except ImportError as error:
    raise ConfigError("TamperBench is missing. Install it from github.com/criticalml-uw/TamperBench.") from error

NAME = "antibody"


@dataclass
class AntibodyConfig(AlignmentDefenseConfig):  # type: ignore[misc]
    """Settings of ``align``, under its names; the two paths are TamperBench's.

    A value that is not given has the default of ``align``.
    """

    defence: str = "antibody"
    alignment_data: str | None = None
    harmful_data: str | None = None
    benign_data: str | None = None
    refusals: str | None = None
    regime: str = "lora"
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)


_PATHS = ("input_checkpoint_path", "output_checkpoint_path")


@register_defense(NAME, AntibodyConfig)
class AntibodyDefense(AlignmentDefense[AntibodyConfig]):  # type: ignore[misc]
    """One of our alignment defences."""

    name = NAME

    def run_defense(self) -> Path:
        """Align the input checkpoint; an adapter is merged, since an attack expects a whole model.

        The run itself stays beside the checkpoint, in a folder with ``.run`` behind its name.

        Returns:
            The folder of the aligned model, which is ``output_checkpoint_path``.

        Raises:
            AntibodyError: whatever a user can fix.
        """
        config = self.defense_config
        given = {name: value for name, value in vars(config).items() if name not in _PATHS and value not in (None, {})}
        output = Path(config.output_checkpoint_path)
        aligned = align(str(config.input_checkpoint_path), output=output.with_name(f"{output.name}.run"), **given)
        loaded = load_model(str(aligned.model))
        model: Any = loaded.model
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        save_model(model, output, tokenizer=loaded.tokenizer, base=str(config.input_checkpoint_path))
        return output
