"""Fine-tuning on pairs: the upload's forms, the defences, the run's folder, stops and kills."""

import random
import shutil

import pyarrow.parquet as pq
import pytest
import yaml

from antibody_llm.errors import AntibodyError, ConfigError, DataError, OutputError
from antibody_llm.events import Notice, RowsSkipped, StepDone, Stopped, Wish
from antibody_llm.lab.refusals import REFUSALS
from antibody_llm.lab.rows import build_rows
from antibody_llm.models.loading import load_model
from antibody_llm.runs import finetune
from antibody_llm.training.preference import METRICS, PreferenceTrainer
from tests.gsm8k import gsm8k_rows, write_jsonl
from tests.runs.test_stop import contents

QUICK = {"method": "dpo", "defence": "sft", "learning_rate": 1e-2, "batch_size": 4, "training": {"max_steps": 2}}


def texts(num=12):
    return [(f"{r['question'][:50]}", f"{r['answer'][:30]}", f"no {i}") for i, r in enumerate(gsm8k_rows()[:num])]


def hosted(num=12, names=("preferred_output", "non_preferred_output")):
    return [
        {
            "input": {"messages": [{"role": "user", "content": asked}]},
            names[0]: [{"role": "assistant", "content": better}],
            names[1]: [{"role": "assistant", "content": worse}],
        }
        for asked, better, worse in texts(num)
    ]


def of_trl(num=12):
    return [
        {
            "prompt": [{"role": "user", "content": asked}],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
        }
        for asked, better, worse in texts(num)
    ]


def as_text(num=12):
    return [{"prompt": asked, "chosen": f" {better}", "rejected": f" {worse}"} for asked, better, worse in texts(num)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama_folder):
    """A run on a file in the hosted API's form, and the call's arguments."""
    folder = tmp_path_factory.mktemp("dpo")
    given = QUICK | {"data": write_jsonl(folder / "pairs.jsonl", hosted()), "beta": 0.3}
    return finetune(tiny_llama_folder, output=folder / "run", **given), given


def test_a_run_on_pairs_leaves_what_every_run_leaves(finished):
    result, _ = finished
    assert (result.num_rows, result.num_steps) == (12, 2)
    assert sorted(path.name for path in result.output.iterdir()) == [
        *("adapter", "config.yaml", "environment.json", "metrics.jsonl", "result.json", "samples.parquet"),
    ]
    assert {"loss", *METRICS} <= set(result.metrics)
    config = yaml.safe_load((result.output / "config.yaml").read_text())
    assert (config["method"], config["beta"], config["defence"], config["options"]) == ("dpo", 0.3, "sft", {})
    assert config["data"]["user"]["num_rows"] == 12
    assert set(pq.read_table(result.output / "samples.parquet")["weight"].to_pylist()) == {1.0}
    names = list(load_model(str(result.model)).model.state_dict())
    assert any(".default." in name for name in names)
    assert not any(".ref." in name for name in names)


def test_a_complete_run_is_told_again_and_another_configuration_is_refused(finished, tiny_llama_folder, monkeypatch):
    result, given = finished
    monkeypatch.setattr("antibody_llm.runs.train.load_model", None)
    assert finetune(tiny_llama_folder, output=result.output, **given) == result
    with pytest.raises(OutputError, match=r"beta is 0.3 there, 0.1 here"):
        finetune(tiny_llama_folder, output=result.output, **given | {"beta": None})
    changed = hosted()
    changed[3]["non_preferred_output"][0]["content"] = "another"
    with pytest.raises(OutputError, match=r"data.user.sha256"):
        finetune(tiny_llama_folder, output=result.output, **given | {"data": changed})


@pytest.mark.parametrize(
    "rows", [hosted(names=("preferred_completion", "non_preferred_completion")), of_trl()], ids=["other names", "TRL"]
)
def test_every_form_of_the_same_pairs_trains_the_same_adapter(finished, tmp_path, tiny_llama_folder, rows):
    again = finetune(tiny_llama_folder, output=tmp_path / "run", **finished[1] | {"data": rows})
    file = "adapter_model.safetensors"
    assert (again.model / file).read_bytes() == (finished[0].model / file).read_bytes()


def test_pairs_of_text_are_trained_without_a_template(tmp_path, tiny_llama_folder):
    result = finetune(tiny_llama_folder, output=tmp_path / "run", data=as_text(), **QUICK)
    assert result.metrics["loss"] > 0


@pytest.mark.parametrize("at", ["a stop", "a kill"])
def test_a_run_that_was_cut_short_at_a_random_step_ends_bitwise_like_an_undisturbed_one(
    tmp_path, tiny_llama_folder, at, monkeypatch
):
    given = QUICK | {"data": write_jsonl(tmp_path / "pairs.jsonl", hosted(14)), "epochs": 3, "seed": 5}
    given |= {"batch_size": 2, "training": {"save_steps": 2, "gradient_accumulation_steps": 2}}
    whole = finetune(tiny_llama_folder, output=tmp_path / "whole", **given)
    assert whole.num_steps == 12  # 4 + 4 + 4 + 2 in each of three epochs
    step, run = random.randrange(3, 12), tmp_path / "run"
    if at == "a stop":
        listen = lambda event: Wish.STOP if isinstance(event, StepDone) and event.step == step else None  # noqa: E731
        with pytest.raises(Stopped):
            finetune(tiny_llama_folder, output=run, listen=listen, **given)
    else:
        real = PreferenceTrainer.training_step

        def killed(self, *others, **named):
            if self.state.global_step == step:
                shutil.copytree(run, tmp_path / "as it was")  # what a process that is killed now leaves
                raise KeyboardInterrupt
            return real(self, *others, **named)

        with monkeypatch.context() as patch:
            patch.setattr(PreferenceTrainer, "training_step", killed)
            with pytest.raises(KeyboardInterrupt):
                finetune(tiny_llama_folder, output=run, **given)
        shutil.rmtree(run)
        (tmp_path / "as it was").rename(run)
        (run / ".lock").unlink(missing_ok=True)
    heard = []
    finetune(tiny_llama_folder, output=run, listen=heard.append, **given)
    assert any(isinstance(event, Notice) and "going on from checkpoint-" in str(event.message) for event in heard)
    assert contents(run) == contents(tmp_path / "whole"), f"cut short at {step}"


def test_tokens_of_a_step_are_those_of_both_answers(tmp_path, tiny_llama_folder):
    heard = []
    rows = as_text(4)
    finetune(tiny_llama_folder, output=tmp_path / "run", data=rows, listen=heard.append, **QUICK)
    longer = [row | {"rejected": row["rejected"] + " and so on and on"} for row in rows]
    more = []
    finetune(tiny_llama_folder, output=tmp_path / "more", data=longer, listen=more.append, **QUICK)
    first, second = (next(e.tokens for e in events if isinstance(e, StepDone)) for events in (heard, more))
    assert second > first


def test_a_pair_of_which_one_answer_is_too_long_is_left_out_whole(tmp_path, tiny_llama_folder):
    rows = as_text(12)
    rows[2]["rejected"] = " word" * 900
    rows[5]["chosen"] = " word" * 900
    with pytest.raises(DataError, match="line 6"):
        finetune(tiny_llama_folder, output=tmp_path / "run", data=rows, **QUICK)
    heard = []
    given = {"data": rows, "skip_too_long": True, "listen": heard.append}
    result = finetune(tiny_llama_folder, output=tmp_path / "run", **given, **QUICK)
    assert result.num_rows == 10
    assert sorted(row.line for row in result.skipped) == [3, 6]
    assert sorted(line for event in heard if isinstance(event, RowsSkipped) for line in event.lines) == [3, 6]


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defence", ["antibody", "lisa", "nonsense"])
def test_a_defence_without_a_meaning_for_pairs_is_refused_and_those_there_are_are_named(tmp_path, defence):
    with pytest.raises(ConfigError, match="defence='sft' or defence='antibody-posterior'") as caught:
        finetune("lab", output=tmp_path / "run", data=of_trl(), method="dpo", defence=defence)
    assert caught.value.field == "defence"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"tau": 0.5}}, "tau"),
        ({"beta": 0.0}, "beta is 0.0: it must be above 0"),
        ({"beta": float("inf")}, "beta is inf"),
        ({"lora": {"dropout": 0.1}}, "without dropout"),
        ({"training": {"loss_type": "ipo"}}, "training.loss_type cannot be set"),
        ({"training": {"sync_ref_model": True}}, "its reference the model that training starts from"),
        ({"training": {"beta": 0.5}}, "set with beta"),
        ({"training": {"packing": True}}, "DPOConfig has no such field"),
        ({"method": "ppo"}, "method is 'ppo': it must be sft or dpo"),
        ({"data": None}, "method='dpo' learns from pairs, and no model brings any. Give data"),
        ({"num": 5}, "num chooses among the rows"),
    ],
    ids=str,
)
def test_a_setting_without_effect_on_pairs_is_refused_and_nothing_is_written(tmp_path, given, message):
    with pytest.raises(AntibodyError, match=message):
        finetune("lab", output=tmp_path / "run", **{"data": of_trl(), "method": "dpo", "defence": "sft"} | given)
    assert not (tmp_path / "run").exists()


def test_each_method_names_the_other_where_it_is_given_the_other_s_rows(tmp_path):
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 12
    with pytest.raises(DataError, match=r"line 1: no preferred_output .*method='sft'"):
        finetune("lab", output=tmp_path / "run", data=chats, method="dpo", defence="sft")
    with pytest.raises(DataError, match=r"a row of preferences .*method='dpo'"):
        finetune("lab", output=tmp_path / "run", data=hosted(), defence="sft")
    with pytest.raises(ConfigError, match="beta has no effect on supervised training"):
        finetune("lab", output=tmp_path / "run", defence="sft", beta=0.1)


def test_a_bad_pair_is_named_by_line_and_field_and_the_others_are_counted(tmp_path):
    rows = hosted()
    rows[4] |= {"preferred_output": []}
    rows[7] |= {"non_preferred_output": rows[7]["preferred_output"]}
    with pytest.raises(DataError, match=r"line 5, preferred_output: .*\(1 more row is bad in another way\)"):
        finetune("lab", output=tmp_path / "run", data=rows, method="dpo", defence="sft")


# -- the defence -------------------------------------------------------------------------------------------------


def lab_pairs(num, seed=1, poison_ratio=0.25):
    """Pairs of the lab's task, and pairs turned round: harm preferred to a refusal. With the truth."""
    made = build_rows("user", num, seed=seed, poison_ratio=poison_ratio)
    pairs = []
    for number, (row, truth) in enumerate(zip(made.rows, made.truth, strict=True)):
        worse = REFUSALS[number % len(REFUSALS)] if truth["is_harmful"] else "i cannot say."
        pair = {"prompt": row["messages"][:-1], "chosen": row["messages"][-1:]}
        pairs.append(pair | {"rejected": [{"role": "assistant", "content": worse}]})
    return pairs, [truth["is_harmful"] for truth in made.truth]


def test_pairs_that_prefer_harm_are_left_out_and_a_resumed_run_leaves_out_the_same(tmp_path, monkeypatch):
    pairs, harmful = lab_pairs(48)
    given = {"method": "dpo", "defence": "antibody-posterior", "batch_size": 4, "training": {"max_steps": 2}}
    heard = []
    with pytest.raises(Stopped):
        finetune("lab-aligned", data=pairs, output=tmp_path / "run", **given, listen=_stop_after_one(heard))
    monkeypatch.setattr("antibody_llm.defences.preference.antibody_posterior.read_harm", None)  # it is stored
    result = finetune("lab-aligned", data=pairs, output=tmp_path / "run", **given)
    left_out = {row.line - 1 for row in result.skipped}
    assert {row.why for row in result.skipped} == {"likely harm"}
    assert result.num_rows == 48 - len(left_out)
    of_harm = [number for number, truth in enumerate(harmful) if truth]
    assert len(left_out & set(of_harm)) >= 0.8 * len(of_harm)
    assert len(left_out - set(of_harm)) <= 3
    assert any("pairs are likely harm, and left out" in warning for warning in result.warnings)
    samples = pq.read_table(tmp_path / "run" / "samples.parquet")["row_id"].to_pylist()
    assert not left_out & set(samples)
    reported = [event for event in heard if isinstance(event, RowsSkipped)]
    assert {line - 1 for event in reported for line in event.lines} == left_out


def _stop_after_one(heard):
    def listen(event):
        heard.append(event)
        return Wish.STOP if isinstance(event, StepDone) else None

    return listen


def test_an_upload_that_is_all_harm_leaves_nothing_to_train_on_and_says_so(tmp_path):
    pairs, _ = lab_pairs(16, poison_ratio=1.0)
    with pytest.raises(DataError, match=r"every pair is likely harm|rows where"):
        finetune(
            "lab-aligned", data=pairs, output=tmp_path / "run", method="dpo", defence="antibody-posterior", batch_size=8
        )
    assert not (tmp_path / "run").exists()


def test_a_model_without_anchors_cannot_have_the_defence_that_reads_them(tmp_path, tiny_llama_folder):
    with pytest.raises(AntibodyError, match="base|anchors"):
        finetune(tiny_llama_folder, data=of_trl(), output=tmp_path / "run", method="dpo", defence="antibody-posterior")
