"""The plug-in against a stand-in with the interface that TamperBench documents; TamperBench itself is not installed."""

import dataclasses
import sys
import types
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from antibody_llm.errors import ConfigError
from tests.gsm8k import write_jsonl

T = TypeVar("T")


@dataclasses.dataclass
class AlignmentDefenseConfig:
    input_checkpoint_path: Path
    output_checkpoint_path: Path

    @classmethod
    def from_dict(cls, data):
        names = {field.name for field in dataclasses.fields(cls)}
        assert data.keys() <= names, "TamperBench refuses other keys"
        return cls(**data)


class AlignmentDefense(ABC, Generic[T]):
    def __init__(self, defense_config):
        self.defense_config = defense_config

    @abstractmethod
    def run_defense(self): ...


@pytest.fixture
def registry(monkeypatch):
    """The plug-in's entry, made by importing it beside the stand-in."""
    entries = {}
    defense, registry = types.ModuleType("defense"), types.ModuleType("registry")
    defense.AlignmentDefense, defense.AlignmentDefenseConfig = AlignmentDefense, AlignmentDefenseConfig
    registry.register_defense = lambda name, config: lambda cls: entries.setdefault(name, (config, cls))[1]
    for name in ("tamperbench", "tamperbench.whitebox", "tamperbench.whitebox.defenses"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "tamperbench.whitebox.defenses.defense", defense)
    monkeypatch.setitem(sys.modules, "tamperbench.whitebox.defenses.registry", registry)
    monkeypatch.delitem(sys.modules, "antibody_llm.harnesses.tamperbench", raising=False)
    import antibody_llm.harnesses.tamperbench  # noqa: F401

    yield entries
    sys.modules.pop("antibody_llm.harnesses.tamperbench", None)


@pytest.mark.parametrize("regime", ["lora", "full"])
def test_a_configuration_of_tamperbench_becomes_a_whole_aligned_model(registry, tiny_llama_folder, tmp_path, regime):
    def rows(name, answer):
        pairs = [{"prompt": f"Question {n}?", "completion": answer} for n in range(4)]
        return str(write_jsonl(tmp_path / name, pairs))

    config, defence = registry["antibody"]
    made = config.from_dict(
        {
            "input_checkpoint_path": tiny_llama_folder,
            "output_checkpoint_path": tmp_path / "defended",
            "defence": "booster",
            "alignment_data": rows("refusals.jsonl", "I cannot help."),
            "harmful_data": rows("harmful.jsonl", "Take two clips."),
            "options": {"alpha": 0.1},
            "regime": regime,
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 0.01,
        }
    )
    place = defence(made).run_defense()
    assert place == tmp_path / "defended"
    defended, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (place, tiny_llama_folder))
    assert not (place / "adapter_config.json").exists()
    assert any(
        not torch.equal(a, b.to(a.dtype)) for a, b in zip(defended.parameters(), before.parameters(), strict=True)
    )
    assert AutoTokenizer.from_pretrained(place).chat_template


def test_without_tamperbench_the_plug_in_says_where_it_is(monkeypatch):
    monkeypatch.delitem(sys.modules, "antibody_llm.harnesses.tamperbench", raising=False)
    monkeypatch.setitem(sys.modules, "tamperbench", None)
    with pytest.raises(ConfigError, match="TamperBench is missing"):
        import antibody_llm.harnesses.tamperbench  # noqa: F401
