"""A cell on a model that brings no rows: everything comes from files, and nothing from the lab."""

import json

from antibody_llm.bench import once, work
from antibody_llm.bench.matrix_file import make_matrix
from antibody_llm.bench.plan import make_plan
from antibody_llm.lab.rows import build_rows


def test_a_model_without_a_profile_is_attacked_repaired_and_judged_on_files(tmp_path, tiny_llama_folder, monkeypatch):
    monkeypatch.setattr(once, "settle", lambda threads: None)
    files = {}
    for key, kind, num in (
        ("data", "user", 16),
        ("attack_data", "harmful", 8),
        ("harmful_prompts", "harmful-prompts", 4),
        ("further_prompts", "lookalike", 4),
        ("test_data", "test", 4),
        ("alignment_data", "alignment", 16),
    ):
        files[key] = str(tmp_path / f"{key}.jsonl")
        rows = build_rows(kind, num, seed=0).rows
        (tmp_path / f"{key}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    matrix = make_matrix(
        {
            "model": str(tiny_llama_folder),
            "judge": "keywords",
            "defences": [
                {"name": "sft", "alignment": "sft", "finetuning": "sft", "post": "safe-lora"},
                {"name": "before any upload", "alignment": "sft", "finetuning": "none"},
            ],
            "attacks": ["backdoor"],
            "poison_ratios": [0.5],
            "budgets": {"one step": {"batch_size": 8, "training": {"max_steps": 1}}},
            "rows": 8,
            "max_new_tokens": 4,
            "seeds": 1,
            "regime": "lora",
        }
        | files,
        "m.yaml",
    )
    alignment, cell, untouched = make_plan(matrix).jobs
    work.carry_out(tmp_path / "out", alignment)
    with monkeypatch.context() as nothing_trains:
        nothing_trains.setattr(work, "finetune", None)
        before = work.carry_out(tmp_path / "out", untouched)
    values = work.carry_out(tmp_path / "out", cell)
    assert values["harmful_score"]["n"] == values["finetune_accuracy"]["n"] == values["asked"]["n"] == 4
    assert values["over_refusal"] is None  # no harmless prompts were given
    assert values["further_refusal"]["n"] == 4  # measured apart
    assert (values["num_rows"], values["num_poison"]) == (8, 4)
    assert work.carry_out(tmp_path / "out", cell) == values
    assert before["asked"] == before["asked_before"]  # it is the aligned model
