"""The parameters of every verb, each written once.

A verb has one frozen dataclass. Its flags and their help, the keys of a configuration file, the Python call, the body
of a request and config.yaml are made from it, so that a new field is one edit. Nothing here imports torch.
"""

from .fields import Rows, SettingField, WeightType, check_kinds, fields_of, plain, written_out
from .parse import make_settings, missing, parse_settings, parse_values
from .training import AlignSettings, FinetuneSettings, Regime, TrainingSettings, rows_of
from .verbs import AnchorsSettings, ConvertSettings, EvaluateSettings, RepairSettings, ScreenSettings

SETTINGS: dict[str, type] = {
    "align": AlignSettings,
    "anchors": AnchorsSettings,
    "finetune": FinetuneSettings,
    "repair": RepairSettings,
    "screen": ScreenSettings,
    "convert": ConvertSettings,
    "evaluate": EvaluateSettings,
}
"""The settings of each verb, in the order of the command line's help."""

__all__ = [
    "SETTINGS",
    "AlignSettings",
    "AnchorsSettings",
    "ConvertSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "Regime",
    "RepairSettings",
    "Rows",
    "ScreenSettings",
    "SettingField",
    "TrainingSettings",
    "WeightType",
    "check_kinds",
    "fields_of",
    "make_settings",
    "missing",
    "parse_settings",
    "parse_values",
    "plain",
    "rows_of",
    "written_out",
]
