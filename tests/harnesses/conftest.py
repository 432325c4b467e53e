import importlib.metadata
import importlib.util
import os

import pytest
from packaging.version import Version

from antibody_llm.runs import finetune

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": f"It is {2 * n}."},
        ]
    }
    for n in range(8)
]


@pytest.fixture(scope="session")
def needs():
    """Skip without an optional package, or with one that is too old, on a user's machine; in CI it must be there."""

    def needs(name, version="0"):
        found = importlib.util.find_spec(name) and Version(importlib.metadata.version(name))
        if found is not None and found >= Version(version):
            return
        why = f"{name} {version} is needed (extra `tasks`) and {found or 'none'} is installed"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)

    return needs


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, tiny_folder):
    """The folder of an adapter that we wrote, on a tiny base."""
    run = finetune(
        tiny_folder("qwen2"),
        data=ROWS,
        defence="sft",
        epochs=1,
        batch_size=4,
        output=tmp_path_factory.mktemp("tuned") / "run",
    )
    return run.output / "adapter"
