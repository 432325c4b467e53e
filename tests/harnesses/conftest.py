import os

import pytest

from antibody_llm.runs import finetune

ROWS = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(8)]


@pytest.fixture(scope="session")
def needs():
    """Skip without an optional package on a user's machine; in CI it must be there."""

    def needs(name):
        if os.environ.get("CI"):
            __import__(name)
        else:
            pytest.importorskip(name, reason=f"{name} is not installed (extra `tasks`)")

    return needs


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, tiny_folder):
    """The folder of an adapter that we wrote, on a tiny base."""
    run = finetune(
        tiny_folder("qwen2"),
        data=[
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in ROWS
        ],
        defence="sft",
        epochs=1,
        batch_size=4,
        output=tmp_path_factory.mktemp("tuned") / "run",
    )
    return run.output / "adapter"
