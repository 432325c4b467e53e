"""The GSM8K rule read against every gold answer of a file: ``evaluation.answers.number_answer`` must find each.

    python benchmarks/gsm8k_answers.py test.jsonl

The file is GSM8K's own, a row of ``question`` and ``answer`` ("... #### 18") a line; its test set has 1319. What stands
after the last mark is read here by itself and compared with what the rule finds in the whole answer

    as it is            with the mark ####
    in Booster's words  "The final answer is: 18" in its place
    without a mark      the number as the last thing said
    going on            the model begins another question after its answer

and, where two neighbouring answers differ, the rule must not take one for the other. Ends with 1 if one is missed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from antibody_llm.evaluation.answers import gsm8k, number_answer

WAYS = {
    "as it is": "{steps}#### {gold}",
    "in Booster's words": "{steps}The final answer is: {gold}",
    "without a mark": "{steps}{gold}",
    "going on": "{steps}#### {gold}\n\nQuestion: Tom has 7 apples and 12,345 pears. How many?",
}


def checked(answers: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """How many answers the rule finds in each way of writing them, and what it gets wrong."""
    found, wrong = dict.fromkeys((*WAYS, "told from its neighbour"), 0), []
    golds = [answer.rsplit("####", 1)[1].strip() for answer in answers]
    for number, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        steps, value = answer.rsplit("####", 1)[0], Decimal(gold.replace(",", ""))
        for way, form in WAYS.items():
            read = number_answer(form.format(steps=steps, gold=gold))
            found[way] += read == value
            if read != value:
                wrong.append(f"line {number + 1}, {way}: {read} instead of {gold}")
        other = golds[(number + 1) % len(golds)]
        differs = Decimal(other.replace(",", "")) != value
        right = gsm8k(answer, answer) and gsm8k(answer, f"#### {other}") != differs
        found["told from its neighbour"] += right
        if not right:
            wrong.append(f"line {number + 1}: {gold} is confused with {other}")
    return found, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The GSM8K rule against every gold answer of a file.")
    parser.add_argument("file", type=Path, help="GSM8K's own rows")
    file = parser.parse_args(arguments).file
    answers = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]
    found, wrong = checked(answers)
    for way, num in found.items():
        print(f"{way:<24} {num} of {len(answers)}")
    print("\n".join(wrong[:20]), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
