import os
import signal

import pytest
import torch

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import OutOfMemory, TrainingError
from antibody_llm.likelihood import ranks
from tests.tinylm import tiny_llama
from tests.training.helpers import trainer


def _ends_with(folder, error, *, at: int = 0, model=None, **settings):
    """The error of a run whose pass number ``at`` meets ``error``."""
    model = model or tiny_llama()
    run = trainer(folder, make_defence(Stage.FINETUNING, "sft"), model=model, **settings)
    passes = iter(range(1000))

    def fail(*_):
        if next(passes) == at:
            raise error

    model.register_forward_pre_hook(fail)
    with pytest.raises(Exception) as raised:
        run.train()
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_a_step_that_does_not_fit_names_rows_length_and_checkpointing_and_what_to_change(tmp_path, error):
    said = str(_ends_with(tmp_path, error, per_device_train_batch_size=4, gradient_accumulation_steps=2))
    assert "step 1 does not fit the memory: 4 rows in a forward pass, the longest of 18 tokens, gradient che" in said
    assert "checkpointing off" in said
    assert "training={'gradient_checkpointing': True}; halve batch_size and double " in said
    assert "training['gradient_accumulation_steps'], now 2, for the same steps; lower training['max_length']" in said


def test_what_is_done_already_is_not_recommended(tmp_path):
    model = tiny_llama()
    settings = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    error = _ends_with(tmp_path, MemoryError(), model=model, **settings)
    assert isinstance(error, OutOfMemory)
    assert "1 row in a forward pass" in str(error)
    assert "checkpointing on. In this order: lower training['max_length']." in str(error)


def test_a_process_that_is_gone_ends_the_others_with_what_to_do(tmp_path, monkeypatch):
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")

    def gone(*_):
        raise lost

    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), save_strategy="steps", save_steps=1)
    monkeypatch.setattr(run.defence, "after_update", lambda context: gone() if context.step == 1 else None)
    monkeypatch.setattr("antibody_llm.training.failures.num_ranks", lambda: 2)
    with pytest.raises(TrainingError, match=r"step 2: another process of this run has ended .* from checkpoint-1\."):
        run.train()
    assert ranks.num_ranks() == 1


@pytest.fixture
def without_handlers():
    """SIGTERM as a launcher's process has it; Ray, in another test of this process, may have left a handler."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("without_handlers")
def test_a_process_that_the_launcher_ends_says_the_same_and_restores_the_signal(tmp_path, monkeypatch):
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"))
    monkeypatch.setattr(run.defence, "after_update", lambda context: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("antibody_llm.training.failures.num_ranks", lambda: 2)
    with pytest.raises(TrainingError, match=r"step 1: another process .* from the beginning, since there is no check"):
        run.train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_errors_are_left_as_they_are(tmp_path):
    error = RuntimeError("shape mismatch")
    assert _ends_with(tmp_path, error) is error
