import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.likelihood.tokens import TokenTable
from antibody_llm.primitives.mixture import LogRatio, halved_log_ratio
from antibody_llm.screening.token_evidence import TokenProbe, TokenRule
from antibody_llm.screening.token_harm import judge_answers, with_prompts

RULE = TokenRule(
    TokenProbe(torch.zeros(1), 0.0),
    token=LogRatio(torch.tensor([2.0], dtype=torch.float64), -1.0),
    row=LogRatio(torch.tensor([10.0], dtype=torch.float64), -5.0),
    auroc=1.0,
    judges=(torch.linspace(0.7, 1.3, 20), torch.linspace(-0.3, 0.3, 20)),
)
ROWS = [TokenizedRow(i, (5, 6, 7), ((1, 3),), Template.TEXT) for i in range(4)]


def table(*values):
    return TokenTable(torch.tensor(values), {i: (2 * i, 2 * i + 2) for i in range(4)})


def test_a_token_is_as_harmful_as_its_row_times_its_own_part():
    found = judge_answers(RULE, table(1.0, 0.5, 0.0, -2.0, 0.1, 0.1, 0.0, 0.0), ROWS)
    lam = halved_log_ratio(*RULE.judges)(torch.tensor([1.0, 0.0, 0.1, 0.0])).tolist()
    assert lam[0] > 1 > -1 > max(lam[1:])
    grid = [i / 10000 for i in range(1, 10000)]
    best = max(grid, key=lambda s: sum(math.log(s * math.exp(x) + 1 - s) for x in lam))
    assert found.share == pytest.approx(best, abs=1e-4)
    row = [found.share * math.exp(x) / (found.share * math.exp(x) + 1 - found.share) for x in lam]
    assert found.probability.tolist() == pytest.approx(row)
    part = [1 / (1 + math.exp(1 - 2 * e)) for e in (1.0, 0.5, 0.0, -2.0, 0.1, 0.1, 0.0, 0.0)]
    assert found.tokens.values.tolist() == pytest.approx([row[i // 2] * q for i, q in enumerate(part)], rel=1e-5)


def test_answers_without_harm_have_none_in_any_token():
    found = judge_answers(RULE, table(0.0, 0.1, 0.0, -2.0, 0.1, 0.1, 0.0, 0.0), ROWS)
    assert found.share == 0
    assert not bool(found.tokens.values.any())


def test_a_prompt_that_asks_for_harm_makes_the_whole_answer_harm():
    answers = judge_answers(RULE, table(1.0, 0.5, 0.0, -2.0, 0.1, 0.1, 0.0, 0.0), ROWS)
    both = with_prompts(answers, torch.tensor([0.0, 1.0, 0.5, 0.0]), ROWS)
    p = answers.tokens.values
    assert_close(both.values, torch.tensor([p[0], p[1], 1, 1, (1 + p[4]) / 2, (1 + p[5]) / 2, p[6], p[7]]))


def test_no_harm_in_prompts_and_answers_is_none_at_all():
    answers = judge_answers(RULE, table(*[0.0] * 8), ROWS)
    assert not bool(with_prompts(answers, torch.zeros(4), ROWS).values.any())
