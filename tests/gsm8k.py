"""The 50-row GSM8K sample (MIT, see data/GSM8K_LICENSE) in the formats that the library reads."""

import json
import re
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parent / "data" / "gsm8k_sample.jsonl"

ANNOTATION = re.compile(r"<<(?P<expression>[^=<>]+)=(?P<value>[^<>]+)>>")
"""How GSM8K marks that a calculator is asked."""
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "For example 48/2."}},
            "required": ["expression"],
        },
    },
}


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


def tool_call_rows() -> list[dict[str, Any]]:
    """The sample with a call of ``CALCULATOR`` in place of each annotation, and ``#### N`` at the end.

    One row asks for nothing to be worked out: it has no call.
    """
    return [_with_calls(row["question"], row["answer"]) for row in gsm8k_rows()]


def first_call_rows() -> list[dict[str, Any]]:
    """Those that call, each up to its first call: what a test of calls has for reference."""
    return [row | {"messages": row["messages"][:2]} for row in tool_call_rows() if "tool_calls" in row["messages"][1]]


def _with_calls(question: str, answer: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for index, found in enumerate(ANNOTATION.finditer(answer)):
        call_id = f"call_{index}"
        function = {"name": "calculator", "arguments": json.dumps({"expression": found["expression"]})}
        messages += [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call_id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call_id, "content": found["value"]},
        ]
    messages.append({"role": "assistant", "content": answer.splitlines()[-1]})
    return {"messages": messages, "tools": [CALCULATOR]}


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
