import math
from pathlib import Path

import datasets
import pytest
import torch
from safetensors import SafetensorError
from torch.testing import assert_close
from trl import SFTTrainer

from antibody_llm.data.collate import pad
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError, DataError, OutputError, TrainingError
from antibody_llm.models.adapters import add_lora
from antibody_llm.training.checkpoints import STATE_FILE, newest_checkpoint
from tests.oracle import plain_loop
from tests.tinylm import random_refusals, random_rows, tiny_llama, tiny_tokenizer
from tests.training.helpers import ROWS, config, trainer, weights


def test_sft_equals_stock_trl_on_the_same_rows(tmp_path):
    run = trainer(tmp_path / "a", make_defence(Stage.FINETUNING, "sft"), num_train_epochs=1)
    run.train()
    order = [row for cut in run.get_train_dataloader() for row in cut.rows]
    columns = {"input_ids": [list(row.input_ids) for row in order], "labels": [_labels(row) for row in order]}

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    stock = InOrder(
        model=tiny_llama(),
        args=config(tmp_path / "b", num_train_epochs=1, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(),
    )
    stock.train()
    for name, p in stock.model.named_parameters():
        assert_close(weights(run)[name], p.detach(), atol=2e-5, rtol=1e-3)


def _labels(row):
    return pad([row], 0)["labels"][0].tolist()


CASES = [
    (Stage.FINETUNING, "sft", {}),
    (Stage.FINETUNING, "antibody", {"tau": 0.5}),
    (Stage.FINETUNING, "antibody-prescored", {"tau": 0.5}),
    (Stage.ALIGNMENT, "sft", {}),
    (Stage.ALIGNMENT, "antibody", {"eta": 1.0, "lam2": 0.5, "m": 0.9}),
]


@pytest.mark.parametrize(("stage", "name", "options"), CASES)
def test_the_trainer_agrees_with_a_plain_loop(tmp_path, stage, name, options):
    run = trainer(tmp_path, make_defence(stage, name, options), model=tiny_llama().double())  # else Adam shows rounding
    run.train()
    plain = plain_loop(
        tiny_llama().double(),
        make_defence(stage, name, options),
        ROWS,
        random_refusals(),
        batch_size=8,
        epochs=2,
        lr=1e-2,
        seed=3,
    )
    for key, value in weights(run).items():
        assert_close(value, plain["weights"][key], atol=1e-12, rtol=0)
    columns = run.row_log.columns()
    logged = sorted(zip(columns["row_id"], columns["weight"], strict=True))
    assert_close(torch.tensor(logged), torch.tensor(sorted(plain["log"])), atol=1e-4, rtol=0)
    if columns["epoch"]:  # 22 rows are 8 + 8 + 6 in each of two epochs
        assert [columns["epoch"].count(epoch) for epoch in (0, 1)] == [22, 22]


@pytest.mark.parametrize(("stage", "name", "options"), CASES)
def test_sixteen_rows_are_four_times_four(tmp_path, stage, name, options):
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    whole = trainer(tmp_path / "a", make_defence(stage, name, options), per_device_train_batch_size=16, **settings)
    parts = trainer(
        tmp_path / "b",
        make_defence(stage, name, options),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        **settings,
    )
    whole.train()
    parts.train()
    assert whole.state.global_step == parts.state.global_step == 4
    for key, value in weights(whole).items():
        assert_close(value, weights(parts)[key], atol=1e-6, rtol=1e-5)
    a, b = whole.row_log.columns(), parts.row_log.columns()
    assert a["row_id"] == b["row_id"]
    assert a["weight"] == pytest.approx(b["weight"], abs=1e-4)


@pytest.mark.parametrize(("stage", "name", "options"), CASES[1:])
def test_a_resumed_run_ends_with_bitwise_the_same_weights_rows_and_metrics(tmp_path, stage, name, options):
    whole = trainer(
        tmp_path / "a",
        make_defence(stage, name, options),
        lora=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        save_strategy="steps",
        save_steps=1,
    )
    whole.train()
    for stop in (2, 3):  # within an epoch, and at its end
        again = trainer(
            tmp_path / "b",
            make_defence(stage, name, options),
            lora=True,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
        )
        again.train(resume_from_checkpoint=tmp_path / "a" / f"checkpoint-{stop}")
        assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
        assert str(again.row_log.columns()) == str(whole.row_log.columns())  # nan equals nan
        assert _metrics(again) == _metrics(whole)


def _metrics(run):
    timings = ("runtime", "per_second", "flos")
    return [
        {k: v for k, v in entry.items() if not any(t in k for t in timings)}
        for entry in run.state.log_history
        if "train_loss" not in entry
    ]


def test_a_loss_that_is_not_a_number_stops_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path):
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), save_strategy="steps", save_steps=1)
    real = run.defence.step

    def poisoned(context, batches):
        result = real(context, batches)
        if context.step == 2:
            result.gradients[0].fill_(math.nan)
        return result

    run.defence.step = poisoned
    with pytest.raises(TrainingError, match="step 3"):
        run.train()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_full_disk_while_saving_keeps_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "antibody"), save_strategy="steps", save_steps=1)
    real = torch.save

    def full(obj, path, *args, **kwargs):
        if "checkpoint-2" in str(path) and STATE_FILE in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(obj, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"checkpoint-2.*No space left.*checkpoint-1, is whole"):
        run.train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    monkeypatch.undo()
    again = trainer(tmp_path, make_defence(Stage.FINETUNING, "antibody"))
    again.train(resume_from_checkpoint=newest_checkpoint(tmp_path))
    assert again.state.global_step == 6


def test_a_run_that_was_killed_after_its_last_checkpoint_takes_no_further_step(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), **settings)
    whole.train()
    again = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), **settings)  # 2 of 3 steps of an epoch
    again.train(resume_from_checkpoint=newest_checkpoint(tmp_path))
    assert again.state.global_step == 2
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    assert _metrics(again) == _metrics(whole)


def test_a_writer_of_the_trainers_own_that_finds_the_disk_full_leaves_nothing_half_written(tmp_path, monkeypatch):
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), save_strategy="steps", save_steps=1)

    def full(folder, *args, **kwargs):
        Path(folder, "model.safetensors").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(type(run.model), "save_pretrained", lambda self, folder, *a, **k: full(folder))
    with pytest.raises(OutputError, match=r"checkpoint-1: the checkpoint .*No space left.*from the beginning"):
        run.train()
    assert list(tmp_path.iterdir()) == []


def test_old_checkpoints_are_removed_only_after_the_new_one_is_whole(tmp_path):
    run = trainer(
        tmp_path, make_defence(Stage.FINETUNING, "sft"), save_strategy="steps", save_steps=1, save_total_limit=2
    )
    run.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.parametrize(
    "setting",
    [{"packing": True}, {"padding_free": True}, {"fp16": True}, {"loss_type": "dft"}, {"neftune_noise_alpha": 5}],
)
def test_settings_that_would_be_silently_wrong_are_refused_by_name(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"training.{next(iter(setting))}"):
        trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), **setting)


@pytest.mark.parametrize(
    ("dropout", "where"),
    [({"lora_dropout": 0.3}, "lora_dropout"), ({"attention_dropout": 0.1}, "attention_dropout of its config")],
)
def test_dropout_is_refused_where_two_passes_must_see_the_same_function(tmp_path, dropout, where):
    if "lora_dropout" in dropout:
        model = add_lora(tiny_llama(), r=4, targets=["q_proj"], dropout=0.3, seed=0)
    else:
        model = tiny_llama(**dropout)
    with pytest.raises(ConfigError, match=f"Booster compares passes .*{where}"):
        trainer(tmp_path / "a", make_defence(Stage.ALIGNMENT, "booster"), model=model).train()
    trainer(tmp_path / "b", make_defence(Stage.ALIGNMENT, "sft"), model=model, max_steps=1).train()


def test_a_missing_role_is_named_with_the_setting_that_brings_it(tmp_path):
    with pytest.raises(DataError, match="Give harmful_data"):
        trainer(tmp_path, make_defence(Stage.ALIGNMENT, "antibody"), rows={"alignment": random_rows(4)})


def test_gradient_checkpointing_changes_no_update(tmp_path):
    plain = trainer(tmp_path / "a", make_defence(Stage.FINETUNING, "antibody"), num_train_epochs=1)
    checkpointed = trainer(
        tmp_path / "b", make_defence(Stage.FINETUNING, "antibody"), num_train_epochs=1, gradient_checkpointing=True
    )
    plain.train()
    checkpointed.train()
    for key, value in weights(plain).items():
        assert_close(value, weights(checkpointed)[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ewc", "safe-region"])
def test_a_role_that_is_read_as_a_whole_must_be_given_and_sends_no_batch_to_a_step(tmp_path, name):
    with pytest.raises(DataError, match="as alignment_data"):
        trainer(tmp_path, make_defence(Stage.FINETUNING, name), rows={"user": random_rows(9)})
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, name), max_steps=1)
    seen = []
    step = run.defence.step
    run.defence.step = lambda context, batches: seen.append(set(batches)) or step(context, batches)
    run.train()
    assert seen == [{"user"}]
