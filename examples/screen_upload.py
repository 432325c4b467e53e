"""Screen an upload before anything is trained on it, and keep the rows that look harmless.

    python examples/screen_upload.py [OUTPUT]

Screening reads each prompt with the aligned model and with the model before its alignment. It trains nothing.
"""

import json
import sys
from pathlib import Path

from antibody_llm.lab.rows import build_rows
from antibody_llm.runs import screen

output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/screen-upload")
upload = build_rows("user", 96, seed=0, task="novel", poison_ratio=0.1).rows

found = screen(upload, "lab-aligned", output=output / "screened")
low, high = found.interval
print(
    f"{found.verdict}: {100 * found.estimated_harmful_share:.1f} % of the rows, {100 * low:.1f} to {100 * high:.1f} %"
)

lines = (output / "screened" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
rows = [json.loads(line) for line in lines]
print("most suspicious:")
for row in sorted(rows, key=lambda row: row["evidence"], reverse=True)[:3]:
    prompt = upload[row["row_id"]]["messages"][-2]["content"]
    print(f"  row {row['row_id']:3}  P(harm) {row['probability']:.2f}  {prompt[:60]}")

kept = [upload[row["row_id"]] for row in rows if row["probability"] is not None and row["probability"] < 0.5]
file = output / "kept.jsonl"
file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
print(f"{len(kept)} of {len(upload)} rows are kept: {file}")
