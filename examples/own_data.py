"""Align, fine-tune and evaluate on rows of your own.

    python examples/own_data.py [OUTPUT]

Rows are files or, as here, lists of dictionaries. These come from the lab, so that the example runs anywhere and holds
nothing harmful; put your own in their place, and your model's folder or Hub id in the place of "lab-aligned".
"""

import sys
from pathlib import Path

from antibody_llm.lab.rows import build_rows
from antibody_llm.runs import align, evaluate, finetune

output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-data")

# What the provider owns. Prompts with refusals and some harmless answers; prompts with harmful answers; and held-out
# rows of both labels, by which later uploads are judged.
refusals = build_rows("alignment", 64, seed=0).rows
harmful = build_rows("harmful", 64, seed=0).rows
held_out_harmful = build_rows("anchor-harmful", 64, seed=0).rows
held_out_harmless = build_rows("anchor-benign", 64, seed=0).rows

# What a user uploads: {"messages": [...]} as in the OpenAI format, {"prompt", "completion"}, or Alpaca's fields.
upload = build_rows("user", 96, seed=0, task="familiar", poison_ratio=0.2).rows

aligned = align(
    "lab-aligned",
    alignment_data=refusals,
    harmful_data=harmful,
    anchor_harmful_data=held_out_harmful,
    anchor_benign_data=held_out_harmless,
    regime="full",
    epochs=1,
    output=output / "aligned",
)
tuned = finetune(aligned.model, data=upload, regime="full", epochs=4, output=output / "tuned")
measured = evaluate(
    tuned.model,
    harmful_prompts=build_rows("harmful-prompts", 32, seed=0).rows,
    test_data=build_rows("test", 32, seed=0, task="familiar").rows,
    judges=["lab", "keywords"],  # on a model of your own: keywords, a weak baseline, or a judge of your own
    output=output / "measured",
)
for name, value in measured.metrics.items():
    print(f"{name:18} {100 * value:5.1f} %")
