"""P(harm) of every token of an upload, given how much harm its answers and its prompts show.

    Lam_i  log p(E_i | harm) - log p(E_i | harmless) of row i's answers, by halves of each class  primitives/mixture.py
    pi     the share of rows with harm in an answer that is most likely given every Lam_i          primitives/mixture.py
    Lam_t  the same of a token, by the composed answers alone                                      token_evidence.py
    p_i = pi exp(Lam_i) / (pi exp(Lam_i) + 1 - pi)           an answer of row i holds harm
    q_t = 1 / (1 + exp(-Lam_t))                              token t is part of it, if one does
    P_t = 1 - (1 - p_i q_t) (1 - p^x_i)                      p^x_i: the prompt asks for harm, by its evidence (harm.py)

Answers of an upload read less harmful than held-out anchors, and its harmless ones are mostly easier than composed
ones, which are made to be hard. So either class may lean to its lower or its upper half: by one ratio for every upload
the estimated share of harmful answers was as little as a fifth of the true one.

Where no answer shows harm pi is 0, and so is every p_i; where no prompt does either, every P_t is 0. An answer to a
harmful prompt counts as harm as a whole, whatever it says: of a refusal that costs nothing, since the aligned model
refuses there anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.records import TokenizedRow
from ..likelihood.tokens import TokenTable, num_trained
from ..primitives.mixture import halved_log_ratio, harm_posterior, harmful_share
from .token_evidence import TokenRule, row_evidence


@dataclass(frozen=True)
class AnswerHarm:
    """The harm that the answers of an upload show.

    Attributes:
        share: pi, 0 to 1.
        probability: [rows], p_i.
        tokens: p_i q_t of every token.
    """

    share: float
    probability: Tensor
    tokens: TokenTable

    def without_harm(self) -> "AnswerHarm":
        """The judgement of one who does not read answers: none is harmful."""
        nothing = self.tokens.with_values(torch.zeros_like(self.tokens.values))
        return AnswerHarm(0.0, torch.zeros_like(self.probability), nothing)


def judge_answers(
    rule: TokenRule, evidence: TokenTable, rows: Sequence[TokenizedRow], *, prior: tuple[float, float] = (1.0, 1.0)
) -> AnswerHarm:
    """Judge the answers of an upload by their evidence.

    Args:
        rule: What the anchors say.
        evidence: e_t of every trained token.
        rows: The rows, at least one.
        prior: Beta(a, b) on the share.
    """
    ratio = halved_log_ratio(*rule.judges)(row_evidence(evidence, rows))
    share = harmful_share(ratio, alpha=prior[0], beta=prior[1])
    probability = harm_posterior(ratio, share)
    part = torch.sigmoid(rule.token(evidence.values.cpu()))
    return AnswerHarm(share, probability, evidence.with_values(_by_row(evidence, rows, probability) * part.float()))


def with_prompts(answers: AnswerHarm, prompts: Tensor, rows: Sequence[TokenizedRow]) -> TokenTable:
    """Join the probabilities of answers and of prompts: P_t of every token.

    Args:
        answers: The judgement of the answers.
        prompts: p^x_i, [rows].
        rows: The rows.
    """
    asked = _by_row(answers.tokens, rows, prompts)
    return answers.tokens.with_values(1 - (1 - answers.tokens.values) * (1 - asked))


def _by_row(tokens: TokenTable, rows: Sequence[TokenizedRow], values: Tensor) -> Tensor:
    """A row's value at each of its tokens: [tokens], float32, in the order of the table, on the CPU."""
    found = torch.zeros(len(tokens.values))
    for row, value in zip(rows, values.tolist(), strict=True):
        start, end = tokens.bounds[row.row_id]
        assert end - start == num_trained(row)
        found[start:end] = value
    return found
