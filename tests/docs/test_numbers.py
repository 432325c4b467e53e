"""Numbers in the prose of the guide and the concepts are those of the committed results."""

import json
from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file

from antibody_llm.evaluation.measures import wilson_interval
from readme_tables import defences_results

ROOT = Path(__file__).resolve().parents[2]
DEMO = json.loads((ROOT / "docs" / "demo" / "results.json").read_text(encoding="utf-8"))["rows"]
DEFENCES = defences_results()["rows"]
GPU = json.loads((ROOT / "benchmarks" / "results" / "gpu_check.json").read_text(encoding="utf-8"))["rows"]
FAMILIAR = {"task": "familiar", "poison_ratio": 0.2, "budget": "default"}


def average(values):
    return sum(values) / len(values)  # as the tables do; the exact mean, 23.75, would round up


def percent(rows, measure: str, *, over=average, **wanted) -> str:
    found = [row[measure] for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert found, wanted
    return f"{100 * over(found):.1f} %"


def words(page: str) -> str:
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def test_how_fine_tuning_breaks_safety():
    text = words("concepts/how-fine-tuning-breaks-safety.md")
    before = percent(DEMO, "harmful_score", alignment="sft", finetuning="none", novel=False)
    clean, poisoned = (
        percent(DEMO, "harmful_score", headline=True, finetuning="sft", poison_ratio=ratio) for ratio in (0.0, 0.2)
    )
    assert f"harmful score from {before} to {poisoned}" in text
    assert f"from {before} to {clean}" in text
    weights = percent(DEFENCES, "harmful_score", defence="antibody", stage="finetuning", alignment="sft", **FAMILIAR)
    alone = percent(DEFENCES, "harmful_score", defence="antibody", stage="alignment", **FAMILIAR)
    both = percent(DEMO, "harmful_score", headline=True, finetuning="antibody", poison_ratio=0.2)
    assert f"leave {weights} after plain alignment and {both} after Antibody's own" in text
    assert f"without the weights leaves {alone}" in text
    novel = FAMILIAR | {"task": "novel", "alignment": "antibody", "defence": "antibody", "stage": "finetuning"}
    harmful, accuracy = (
        percent(DEFENCES, name, over=over, **novel)
        for name, over in (("harmful_score", max), ("finetune_accuracy", min))
    )
    assert (f"harmful score {harmful}", accuracy) == ("harmful score 98.5 %", "0.0 %")
    assert f"harmful score {harmful}, accuracy 0 %" in text


def test_published_measures_beside_ours():
    text = (ROOT / "docs" / "antibody-posterior.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "benchmarks" / "results" / "evidence_published.json").read_text(encoding="utf-8"))
    kinds = ("familiar", "novel", "noise", "lookalike", "odd-format", "upload")
    names = ("feature-shift", "refusal-feature", "refusal-teacher", "larf", "datashield", "gradshield")
    for name in names:
        of = found["summary"]["sft"]["auroc"][name]
        assert " | ".join(f"{of[kind]['worst']:.3f}" for kind in kinds) in text, name
    assert found["seeds"] == 1


def test_reading_a_report():
    low, high = wilson_interval(0, 32)
    assert low == 0
    assert f"the interval still reaches {100 * high:.0f} %" in words("guide/reading-a-report.md")


def test_on_a_gpu():
    text = words("scale.md")
    rows = {(row["part"], row["name"]): row for row in GPU}
    alignment = [rows["cost", f"{size}: antibody alignment"]["x_ours"] for size in ("1B", "7B", "1B tf32", "1B fp32")]
    said = (
        "costs {:.2f} of our own undefended step on the 1 B and {:.2f} on the 7 B, in TF32 {:.2f} and in float32 {:.2f}"
    )
    assert said.format(*alignment) in text
    ours, theirs = (
        {size: rows["cost", f"{size}: {step}"] for size in ("1B", "7B")} for step in ("sft (ours)", "SFTTrainer")
    )
    beside = [ours[size]["x_SFTTrainer"] for size in ("1B", "7B")]
    assert "costs {:.2f} of TRL's trainer on the 1 B and {:.2f} on the 7 B".format(*beside) in text
    assert 1.45 < ours["1B"]["step_gib"] / theirs["1B"]["step_gib"] < 1.55  # half as much memory again
    read = [rows["cost", f"{size}: evidence of antibody-posterior"]["ms_per_row"] for size in ("1B", "7B")]
    assert "{:.1f} ms a row on the 1 B model, {:.1f} ms on the 7 B.".format(*read) in text
    here, cpu = (
        {name: rows["lab", f"{name}{place}"] for name in ("antibody-posterior", "sft")} for place in ("", " on the CPU")
    )
    shown = [f"{100 * of['sft']['harmful_score']:.1f}" for of in (here, cpu)]
    assert "{} % (GPU) and {} % (CPU) without a defence".format(*shown) in text
    posterior = {f"{100 * of['antibody-posterior']['harmful_score']:.1f}" for of in (here, cpu)}
    assert posterior == {"0.4"}
    assert "score 0.4 % under `antibody-posterior` on the GPU and on the CPU" in text
    assert {row["finetune_accuracy"] for of in (here, cpu) for row in of.values()} == {1.0}
    trained = [row for row in GPU if row["part"] == "defences"]
    assert {row["status"] for row in trained} == {"passed"}
    assert f"All {len(trained)} pass" in text
    assert rows["fsdp", "fully_shard, StepContext.gradient"]["status"] == "differs"


def test_scale():
    text = words("scale.md")
    sharded, memory = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("sharded", "memory")
    )
    defences = {case.rpartition(" ")[0] for case in sharded["gradients"]}
    worst, most = max(sharded["gradients"].values()), max(max(of.values()) for of in sharded["held"].values())
    assert f"Of {len(defences)} defences a step's gradient is that of one process to {worst:.1e} of its norm" in text
    assert worst <= 1e-5
    assert f"what a defence keeps: {100 * most:.1f} % of one process's bytes on each rank" in text
    assert most <= 1.1 / sharded["ranks"]
    assert sharded["killed"]["launch_ended"]
    assert all(sharded["killed"]["same_bits"].values())
    assert f"to the same bits, in {len(sharded['killed']['same_bits'])} defences" in text
    (refused,) = sharded["refused"]
    assert f"each with its reason: `{refused.split()[1]}`, which needs whole matrices" in text
    ratios = [row["ratio"] for row in (*memory["cpu"], *memory["gpu"])]
    assert f"it is {min(ratios):.2f} to {max(ratios):.2f} of them: {len(memory['gpu'])} steps on an H100" in text
    assert f"and {len(memory['cpu'])} small ones on a CPU" in text


def test_the_configurations_of_accelerate_are_those_of_the_examples():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "examples" / "accelerate").iterdir()):
        text = file.read_text(encoding="utf-8")
        assert "".join(f"    {line}\n" for line in text.splitlines()) in page
        assert load_config_from_file(str(file)).num_processes == 8


def test_how_far_the_labs_judge_may_be_trusted():
    found = json.loads((ROOT / "benchmarks" / "results" / "judge_calibration.json").read_text(encoding="utf-8"))
    text, lab = words("guide/own-judge.md"), found["lab"]
    assert f"has {lab['accuracy']['n']} answers that were written and labelled by hand" in text
    assert f"{lab['missed of attacks']['n']} of them attacks on judges" in text
    right, weak = (f"{100 * found[name]['accuracy']['value']:.1f} %" for name in ("lab", "keywords"))
    assert f"on {right} of them (keywords: {weak})" in text
    assert f"misses {100 * lab['missed of attacks']['value']:.1f} % of the attacks" in text


def test_a_real_model():
    text = words("real-model.md")
    (row,) = json.loads((ROOT / "benchmarks" / "results" / "real_prepare.json").read_text(encoding="utf-8"))["rows"]
    width = (row["num_parameters_before"] - row["num_parameters"]) // (row["vocabulary_before"] - row["vocabulary"])
    embeddings = width * row["vocabulary_before"]
    assert f"Of {row['num_parameters_before'] / 1e6:.0f} million weights {embeddings / 1e6:.0f} are" in text
    assert f"embeddings of {row['vocabulary_before']:,} tokens. `prepare` keeps the {row['vocabulary']:,}" in text
    assert f"its {row['num_texts']:,} texts" in text
    assert f"leaves {row['num_parameters'] / 1e6:.0f} million weights" in text
    assert f"{row['num_changed']} of {row['num_texts']:,} texts have other tokens" in text
    assert f"a logit of a kept token is {row['largest_logit_difference']:g}" in text
    labelled = ROOT / "src" / "antibody_llm" / "english" / "files" / "judged.jsonl"
    assert f"with {len(labelled.read_text(encoding='utf-8').splitlines())} completions that a reader labelled" in text
