import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tempfile
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_folder

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@pytest.fixture(scope="session", autouse=True)
def cache():
    """A cache of the session's own: what an earlier one has read must not stand in for what this code reads."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTIBODY_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Kind of model to its folder; each is made once a session. See tiny.FAMILIES for the kinds."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_tiny_folder(kind, tmp_path_factory.mktemp(kind) / "model")
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def tiny_llama_folder(tiny_folder) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def tiny_qwen_folder(tiny_folder) -> Path:
    return tiny_folder("qwen2")


@pytest.fixture(scope="session")
def tiny_mistral_folder(tiny_folder) -> Path:
    return tiny_folder("mistral")
