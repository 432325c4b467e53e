"""The 50-row GSM8K sample (MIT, see data/GSM8K_LICENSE) in the formats that the library reads."""

import json
from pathlib import Path

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"


def gsm8k_rows() -> list[dict[str, str]]:
    """50 rows of question and answer."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def write_chat(path: Path) -> Path:
    """The sample as OpenAI chat JSONL."""
    rows = [
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in gsm8k_rows()
    ]
    return write_jsonl(path, rows)


def write_prompt_completion(path: Path) -> Path:
    """The sample as prompt/completion JSONL; the completion begins with the space that separates it."""
    rows = [{"prompt": f"Q: {r['question']}\nA:", "completion": f" {r['answer']}"} for r in gsm8k_rows()]
    return write_jsonl(path, rows)


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
