"""Formats of rows that are widely used and not accepted here: each by its name, with the command that converts it."""

from collections.abc import Mapping
from typing import Any

from ..mentions import setting
from .problems import BadRow

PREFERRED = ("preferred_output", "preferred_completion", "chosen")
"""Where a row of preferences (DPO) has the better answer."""
REFERENCES = ("reference_answer", "grader", "ground_truth", "reward_model", "verifier", "solution", "expected_answer")
"""What a row of reinforcement has beside its prompt; none of these is an answer to train on."""
PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("inputs", "targets"),
    ("problem", "solution"),
    ("user", "assistant"),
)
"""Names that prompt and completion have elsewhere."""


def other_format(row: Mapping[str, Any]) -> BadRow | None:
    """The known format of a row that cannot be trained as it is; None where it resembles none."""
    for field in PREFERRED:
        if field in row:
            return _preferences(row, field)
    if (nested := next((field for field, inner in row.items() if _holds_messages(inner)), None)) is not None:
        return _nested(row, nested)
    for field in REFERENCES:
        if field in row and ("messages" in row or "prompt" in row):
            prompt = ".messages" if "messages" in row else ".prompt"
            return BadRow(
                "reinforcement rows",
                f"a row of reinforcement: a prompt with '{field}', and no answer to train on. This is supervised "
                f"training, which needs one: {_jq(_with_answer(row, prompt, f'.{field}'))} where '{field}' is the "
                "answer itself.",
                field,
            )
    if not {"messages", "prompt", "instruction"}.isdisjoint(row):
        return None
    if set(row) == {"role", "content"} or set(row) == {"from", "value"}:
        return BadRow(
            "bare message",
            'a bare message, not a row. A row holds a whole conversation: write {"messages": [...]} around the list.',
        )
    for field in ("data", "rows", "train", "examples", "items"):
        inner = row.get(field)
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            return BadRow("rows in a field", f"the rows are in the field '{field}': {_jq(f'.{field}[]')}.", field)
    for prompt, completion in PAIRS:
        if prompt in row and completion in row:
            return BadRow(
                "unknown fields",
                f"no accepted format (fields seen: {', '.join(sorted((prompt, completion)))}). Name them prompt and "
                f"completion: {_jq(f'{{prompt: .{prompt}, completion: .{completion}}}')}.",
            )
    if isinstance(row.get("text"), str):
        return BadRow(
            "text rows",
            'rows of plain text ({"text": ...}), which do not say where the prompt ends. Split each into '
            '{"prompt": ..., "completion": ...}.',
            "text",
        )
    return None


def _preferences(row: Mapping[str, Any], field: str) -> BadRow:
    better = row[field]
    answer = f".{field}" if isinstance(better, list) else f"[.{field}]"
    if isinstance(row.get("input"), Mapping):
        program = f"{{messages: (.input.messages + {answer}), tools: .input.tools}}"
    elif "prompt" in row and isinstance(better, str):
        program = f"{{prompt, completion: .{field}}}"
    elif isinstance(row.get("prompt"), list):
        program = f"{{prompt, completion: {answer}}}"
    elif "conversations" in row:
        program = f"{{conversations: (.conversations + {answer})}}"
    elif isinstance(better, str) and "instruction" in row:
        program = f"{{instruction, input, output: .{field}}}"
    else:
        program = f"{{messages: {answer}}}"
    return BadRow(
        "preference rows",
        f"a row of preferences (DPO), a better and a worse answer. This is supervised training, which takes the better "
        f"one alone: {_jq(program)}. `antibody finetune` trains on both with {setting('method', 'dpo')}.",
        field,
    )


def _nested(row: Mapping[str, Any], field: str) -> BadRow:
    inner = f".{field}.messages"
    output = next((name for name in ("output", "completion", "response") if isinstance(row.get(name), str)), None)
    if output is None or _role(row[field]["messages"]) == "assistant":
        program = f".{field}"
    else:
        program = f"{{messages: ({inner} + {_answer(f'.{output}')})}}"
    return BadRow(
        "nested messages",
        f"the messages are inside the field '{field}', as in stored requests. A row has them in 'messages' itself: "
        f"{_jq(program)}.",
        field,
    )


def _holds_messages(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("messages"), list)


def _role(messages: list[Any]) -> Any:
    """The role of the last message."""
    return messages[-1].get("role") if messages and isinstance(messages[-1], Mapping) else None


def _with_answer(row: Mapping[str, Any], prompt: str, answer: str) -> str:
    if isinstance(row.get("prompt"), str) and "messages" not in row:
        return f"{{prompt, completion: {answer}}}"
    return f"{{messages: ({prompt} + {_answer(answer)})}}"


def _answer(text: str) -> str:
    return f'[{{role: "assistant", content: {text}}}]'


def _jq(program: str) -> str:
    return f"jq -c '{program}' IN > OUT"
