"""A listener asks a verb to stop: it ends in good order, and the same call goes on to the same bits."""

import json
import random

import pytest

from antibody_llm.defences.finetuning.sft import FinetuningSFT
from antibody_llm.events import CheckpointSaved, Notice, Progress, StepDone, Stopped, Wish, warn
from antibody_llm.lab.rows import build_rows
from antibody_llm.runs import evaluate, finetune, repair, screen
from antibody_llm.training.defence import NoOptions
from tests.gsm8k import gsm8k_rows, write_jsonl

TIMINGS = ("runtime", "per_second", "flos")


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    rows = [{"prompt": r["question"][:60], "completion": f" {r['answer'][:40]}"} for r in gsm8k_rows()[:14]]
    folder = tmp_path_factory.mktemp("upload")
    # One row repeats, which is warned of.
    return write_jsonl(folder / "up.jsonl", [*rows, rows[0]]), write_jsonl(folder / "kept.jsonl", rows[:8])


def contents(run):
    result = json.loads((run / "result.json").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "samples": (run / "samples.parquet").read_bytes(),
        "config": (run / "config.yaml").read_bytes(),
        "metrics": [{k: v for k, v in entry.items() if not any(t in k for t in TIMINGS)} for entry in metrics],
        "result": {key: value for key, value in result.items() if key != "seconds"},
        "files": sorted(path.name for path in run.iterdir()),
    }


@pytest.mark.parametrize(
    ("defence", "training"),
    [
        ("bds", {"gradient_accumulation_steps": 2}),  # its weights and scorer live through the run
        ("ema", {"logging_steps": 3, "gradient_accumulation_steps": 1}),  # its mean does; not every step is logged
    ],
)
def test_a_run_that_was_stopped_ends_bitwise_like_an_undisturbed_one(
    tmp_path, tiny_llama_folder, upload, defence, training
):
    data, kept = upload
    given = {"data": data, "alignment_data": kept, "defence": defence, "batch_size": 2, "epochs": 3, "seed": 5}
    given |= {"learning_rate": 1e-2, "training": training | {"save_steps": 4, "lr_scheduler_type": "cosine"}}
    whole, heard = tmp_path / "whole", []
    result = finetune(tiny_llama_folder, output=whole, listen=heard.append, **given)
    steps = [event for event in heard if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, result.num_steps + 1))

    at, run, before = random.randrange(1, result.num_steps), tmp_path / "run", []

    def stop(event):
        before.append(event)
        return Wish.STOP if isinstance(event, StepDone) and event.step == at else None

    with pytest.raises(Stopped, match=f"stopped after step {at} of {result.num_steps}") as stopped:
        finetune(tiny_llama_folder, output=run, listen=stop, **given)
    assert stopped.value.step == at
    assert (run / "checkpoints" / f"checkpoint-{at}").is_dir()
    assert not (run / "result.json").exists()
    saved = run / "checkpoints" / f"checkpoint-{at}"
    assert before[-2] == CheckpointSaved(step=at, path=str(saved), planned=at % 4 == 0)
    assert all(event.planned for event in (*heard, *before[:-2]) if isinstance(event, CheckpointSaved))
    assert isinstance(before[-1], Notice)

    after = []
    again = finetune(tiny_llama_folder, output=run, listen=after.append, **given)
    assert contents(run) == contents(whole), f"stopped after step {at}"
    assert [event for event in (*before, *after) if isinstance(event, StepDone)] == steps
    assert again.warnings == result.warnings
    assert any("repeat an earlier one" in warning for warning in again.warnings)


def test_a_warning_of_a_step_before_the_stop_is_in_the_result(tmp_path, tiny_llama_folder, upload):
    class Worried(FinetuningSFT):
        def step(self, context, batches):
            if context.step == 0:
                warn("the first step looked odd")
            return super().step(context, batches)

    given = {"data": upload[1], "batch_size": 4, "epochs": 1, "output": tmp_path / "run"}
    with pytest.raises(Stopped):
        finetune(
            tiny_llama_folder,
            defence=Worried(NoOptions()),
            listen=lambda e: Wish.STOP if type(e) is StepDone else None,
            **given,
        )
    assert finetune(tiny_llama_folder, defence=Worried(NoOptions()), **given).warnings == ("the first step looked odd",)


def test_a_stop_before_the_first_step_keeps_that_step(tmp_path, tiny_llama_folder, upload):
    with pytest.raises(Stopped) as stopped:
        finetune(
            tiny_llama_folder,
            data=upload[0],
            defence="sft",
            batch_size=2,
            output=tmp_path / "run",
            listen=lambda event: Wish.STOP,
        )
    assert stopped.value.step == 1


def test_warnings_of_a_stored_result_are_those_of_the_run(tmp_path, tiny_llama_folder, upload):
    given = {"data": upload[0], "defence": "sft", "batch_size": 4, "epochs": 1, "output": tmp_path / "run"}
    first = finetune(tiny_llama_folder, **given)
    assert len(first.warnings) == 1
    assert finetune(tiny_llama_folder, **given).warnings == first.warnings
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    del stored["warnings"]  # as of a release that kept none
    (tmp_path / "run" / "result.json").write_text(json.dumps(stored))
    assert finetune(tiny_llama_folder, **given).warnings == ()


def stop_at(what, done):
    heard = []

    def listen(event):
        heard.append(event)
        return Wish.STOP if isinstance(event, Progress) and event.what == what and event.done >= done else None

    return listen, heard


def test_an_evaluation_stops_between_batches_and_leaves_nothing(tmp_path, tiny_llama_folder, upload):
    listen, heard = stop_at("test", 4)
    given = {"test_data": upload[0], "batch_size": 4, "max_new_tokens": 2, "output": tmp_path / "run"}
    with pytest.raises(Stopped, match="test, 4 of 15"):
        evaluate(tiny_llama_folder, listen=listen, **given)
    assert heard[-1].done == 4
    assert list(tmp_path.iterdir()) == []
    assert evaluate(tiny_llama_folder, **given).num_rows == 15


def test_a_repair_stops_between_batches_and_leaves_nothing(tmp_path, tiny_llama_folder, upload):
    listen, heard = stop_at("repairing, harmful rows", 8)
    given = {"harmful_data": upload[0], "batch_size": 4, "output": tmp_path / "run"}
    with pytest.raises(Stopped, match="repairing, harmful rows, 8 of 15"):
        repair(tiny_llama_folder, listen=listen, **given)
    assert heard[-1].done == 8
    assert list(tmp_path.iterdir()) == []
    assert repair(tiny_llama_folder, **given).num_rows == 15


def test_a_screening_stops_between_batches_leaves_nothing_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    rows = build_rows("user", 24, seed=6, poison_ratio=0.5).rows
    listen, heard = stop_at("screening", 8)
    with pytest.raises(Stopped, match="screening, 8 of 24"):
        screen(rows, "lab", batch_size=8, output=tmp_path / "run", listen=listen)
    assert heard[-1].done == 8
    assert not (tmp_path / "run").exists()
    done = []
    screen(rows, "lab", batch_size=8, output=tmp_path / "run", listen=done.append)
    whole = screen(rows, "lab", batch_size=8, output=tmp_path / "whole")
    for name in ("rows.jsonl", "rows.parquet"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.output / name).read_bytes()
