"""Whatever a stranger writes, a command ends with 0, or with 2 and a message, in time, and touches its output alone.

Bounded for the suite: each of the five takes ``SECONDS`` at most, with the same examples every time. For a long run
with new ones: ANTIBODY_FUZZ_SECONDS=600 pytest tests/fuzz
"""

import inspect
import json
import os
import shutil
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from typer.models import ArgumentInfo

from antibody_llm.cli import lab
from antibody_llm.cli.verbs import command
from antibody_llm.runs import finetune as run_finetune
from antibody_llm.runs.trainer_config import HONOURED
from tests.gsm8k import write_jsonl
from tests.tiny import LLAMA_TEMPLATE

from . import strategies as s
from .harness import OUTPUT, check

ASKED = float(os.environ.get("ANTIBODY_FUZZ_SECONDS", "0"))
SECONDS = ASKED or 9.0
"""For each of the five."""
FUZZ = settings(
    max_examples=10**6 if ASKED else 150,
    deadline=None,
    database=None,
    derandomize=not ASKED,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink) if ASKED else (Phase.generate,),
)

GOOD = [
    {"messages": [{"role": "user", "content": f"{n} and 1?"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(4)
]
QUICK = ["--defence", "sft", "--train", "max_steps=1", "--batch-size", "1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_llama_folder):
    """A folder that holds a model, an adapter that was trained on it, and rows."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_llama_folder, folder / "model")
    write_jsonl(folder / "rows.jsonl", GOOD)
    made = tmp_path_factory.mktemp("made") / "run"
    run_finetune(folder / "model", data=GOOD, output=made, defence="sft", batch_size=1, training={"max_steps": 1})
    shutil.copytree(made / "adapter", folder / "adapter")
    return folder


@pytest.fixture(autouse=True)
def _own_places(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def attempt(world):
    """Run a command in the world, with files put into it; the world is as before afterwards, and time is bounded."""
    started = time.monotonic()

    def run(arguments: list[str], files: dict[str, bytes]) -> None:
        if time.monotonic() - started > SECONDS:
            return
        saved = {name: (world / name).read_bytes() if (world / name).exists() else None for name in files}
        try:
            for name, content in files.items():
                (world / name).write_bytes(content)
            check(world, arguments)
        finally:
            for name, content in saved.items():
                (world / name).unlink(missing_ok=True)
                if content is not None:
                    (world / name).write_bytes(content)
            for left in (*world.glob(f"{OUTPUT}*"), *world.glob(f".{OUTPUT}*")):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    return run


def known_flags(verb) -> dict[str, str]:
    """Flags of a verb, and what follows them."""
    pairs = {"options": "tau rho lam alpha", "training": " ".join(HONOURED), "lora": "r alpha targets dropout"}
    known = {}
    for name, hint in get_type_hints(verb, include_extras=True).items():
        if name in ("return", "output", "events", "truth") or isinstance(get_args(hint)[1], ArgumentInfo):
            continue
        kind, option = get_args(hint)
        # typer takes the first name for a default until it looks at the function.
        flag = option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"
        word = "number" if {int, float} & {kind, *get_args(kind)} else "text"
        known[flag] = pairs.get(name, "" if kind is bool else word)
    return known


ON = ["--model", "model", "--output", OUTPUT]
COMMANDS = {
    "finetune": (command("finetune"), [*ON, "--data", "rows.jsonl", *QUICK]),
    "align": (command("align"), [*ON, "--alignment-data", "rows.jsonl", *QUICK]),
    "evaluate": (command("evaluate"), [*ON, "--test-data", "rows.jsonl", "--max-new-tokens", "2"]),
    "repair": (command("repair"), [*ON, "--adapter", "adapter", "--harmful-data", "rows.jsonl", "--batch-size", "2"]),
    "screen": (command("screen"), ["rows.jsonl", *ON, "--batch-size", "2"]),
    "lab data": (lab.data, ["--output", OUTPUT, "--kind", "user", "--num", "5"]),
}
ARGUMENTS = s.st.one_of(
    *(s.flags(known_flags(made), [*verb.split(), *good]) for verb, (made, good) in COMMANDS.items())
)
CONFIGURED = {
    "finetune": {
        "model": "model",
        "data": "rows.jsonl",
        "defence": "sft",
        "batch_size": 1,
        "training": {"max_steps": 1},
    },
    "evaluate": {"model": "model", "test_data": "rows.jsonl", "max_new_tokens": 2},
    "screen": {"model": "model", "data": "rows.jsonl"},
}
NAMES = sorted({name for verb in CONFIGURED for name in inspect.signature(COMMANDS[verb][0]).parameters})
ADAPTED = ["--model", "model", "--adapter", "adapter"]


def tried_on(file: str) -> list[str]:
    """A quick command that reads a file of the model or of the adapter."""
    model = ADAPTED if file.startswith("adapter") else ADAPTED[:2]
    return ["evaluate", *model, "--test-data", "rows.jsonl", "--max-new-tokens", "2", "--output", OUTPUT]


def test_any_flags(attempt):
    @seed(0)
    @FUZZ
    @given(ARGUMENTS)
    def run(arguments):
        attempt([word for word in arguments if "\0" not in word], {})

    run()


def test_any_yaml_file(attempt):
    cases = s.st.one_of(*(s.st.tuples(s.st.just(v), s.yaml_files(NAMES, good)) for v, good in CONFIGURED.items()))

    @seed(0)
    @FUZZ
    @given(cases)
    def run(case):
        attempt([case[0], "--config", "run.yaml", "--output", OUTPUT], {"run.yaml": case[1]})

    run()


def test_any_upload(attempt):
    verbs = s.st.sampled_from(["finetune", "screen", "evaluate"])

    @seed(0)
    @FUZZ
    @given(verbs, s.uploads())
    def run(verb, content):
        words = (word.replace("rows.jsonl", "upload.jsonl") for word in COMMANDS[verb][1])
        attempt([verb, *words], {"upload.jsonl": content})

    run()


def test_any_chat_template(attempt):
    verbs = s.st.sampled_from(["finetune", "screen", "evaluate"])

    @seed(0)
    @FUZZ
    @given(verbs, s.templates(LLAMA_TEMPLATE))
    def run(verb, template):
        content = template.encode("utf-8", "surrogatepass")
        attempt([verb, *COMMANDS[verb][1]], {"model/chat_template.jinja": content})

    run()


def test_any_file_of_a_model(attempt, world):
    names = ["model/config.json", "model/tokenizer_config.json", "model/antibody.json", "model/generation_config.json"]
    names += ["adapter/adapter_config.json", "adapter/antibody.json"]
    cases = [s.st.tuples(s.st.just(name), s.json_files(_content(world / name))) for name in names]

    @seed(0)
    @FUZZ
    @given(s.st.one_of(*cases))
    def run(case):
        attempt(tried_on(case[0]), {case[0]: case[1]})

    run()


def _content(file: Path) -> dict[str, object]:
    usual = {"base": "model", "deployment": {}, "verb": "align", "defence": "sft"}
    return json.loads(file.read_text()) if file.exists() else usual
