"""Published measures of how harmful a row is, beside ours in evidence.py. High means harm.

    larf             mean_j cos(h, u_j) - cos(h, s_j)
                     h: state of the row's last token at one layer;  u_j, s_j: those of 100 harmful and of 100 benign
                     anchors;  the layer: where weights enlarged by a tenth raise the likelihood of refusing harmless
                     prompts most
    datashield       <h - x, c>
                     h as above, x: state of the prompt's last token;  c: mean state of harmful anchors less that of
                     refusals to the same prompts, at the layer where c parts them best
    gradshield       <grad l_i, grad S> from two forwards: defences/finetuning/gradshield.py
    refusal-teacher  cos(f, R)
                     f: state of the prompt's last token, as a teacher reads it;  R: its mean over harmful anchors less
                     that over benign ones;  the teacher: the base, aligned by SFT, whose f is also pushed along R for
                     harmful prompts and against it for harmless ones

The first three read the answer too, and the aligned model. Their anchors are those stored with that model, which our
own measures are fitted to as well.

Rebuilt from abstracts and notes (docs/papers.md). Ours are: the change by which LARF's layer is chosen (there
over-rejection, by generation); DataShield's score of a layer, |mean difference| over spread, and what its shift is
taken from; GradShield's S; the teacher's layer (the middle one), its cosine loss of weight 1, and R taken from each
step's own batches while it trains.

Sources: Hao Li, Lijun Li, Zhenghao Lu, Xianyi Wei, Rui Li, Jing Shao, Lei Sha, Layer-Aware Representation Filtering:
Purifying Finetuning Data to Preserve LLM Safety Alignment, https://arxiv.org/abs/2507.18631. Junbo Zhang, Qianli Zhou,
Xinyang Deng, Wen Jiang, Jie Pan, Jinbiao Zhu, DataShield: Safety-degrading Data Filtering for LLM Benign Instruction
Fine-Tuning, https://arxiv.org/abs/2606.00160. Zhanhao Hu and others, GradShield, https://arxiv.org/abs/2605.14194.
Seokil Ham, Yubin Choi, Seungju Cho, Yujin Yang, Younghun Kim, Changick Kim, Refusal-Feature-guided Teacher for Safe
Finetuning via Data Filtering and Alignment Distillation, https://arxiv.org/abs/2506.07356.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from antibody_llm.data.records import TokenizedRow
from antibody_llm.data.roles import Role, Stage
from antibody_llm.defences.finetuning.gradshield import GradShieldConfig, difference_scores
from antibody_llm.likelihood.completion import evaluating
from antibody_llm.likelihood.microbatch import MicroBatch, StepBatch
from antibody_llm.models.layout import decoder_layers
from antibody_llm.models.matrices import decoder_matrices
from antibody_llm.primitives.gradients import combined, difference
from antibody_llm.primitives.perturb import perturbed_weights
from antibody_llm.primitives.taps import captured, captured_at
from antibody_llm.screening.states import last_of_prompt
from antibody_llm.training.defence import About, Defence
from antibody_llm.training.step import Batches, RowTerms, StepContext, StepResult

NUM_ANCHORS = 100
"""Anchors of each label that LARF compares with. Release: 100."""
ENLARGED = 0.1
"""Share by which the weights of a layer are enlarged to see whether LARF should read there. Release: about 0.1."""
NUM_PROBES = 64
"""Rows of each term of GradShield's S, and harmless prompts on which LARF's layers are tried."""


@dataclass(frozen=True)
class Labelled:
    """The anchors, apart."""

    harmful: Sequence[TokenizedRow]
    benign: Sequence[TokenizedRow]


Measure = Callable[[Sequence[TokenizedRow]], Tensor]
"""Rows to their scores: [rows], float32."""


def last_of_row(micro: MicroBatch) -> Tensor:
    """The position of each row's last token: [B]."""
    return torch.tensor([len(row.input_ids) - 1 for row in micro.rows])


def states_at(context: StepContext, rows: Sequence[TokenizedRow], place: Callable[[MicroBatch], Tensor]) -> Tensor:
    """The outputs of every decoder layer at one position of each row: [rows, L, D], float32, on the CPU."""
    layers = decoder_layers(context.model)
    width = context.model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]

    def read(micro: MicroBatch) -> Tensor:
        with captured_at(layers, place(micro)) as states:
            context.completion_nll(micro)
        return torch.stack([state.float() for state in states], dim=1).flatten(1)

    with evaluating(context.model):
        found = context.over_rows(rows, read, width=len(layers) * width).cpu()
    return found.view(len(rows), len(layers), width)


def refused(context: StepContext, rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """The same prompts, each with a refusal."""
    return [context.refusals.row(row, i) for i, row in enumerate(rows)]


def mean_nll(context: StepContext, rows: Sequence[TokenizedRow]) -> Tensor:
    """[rows], nats per token."""

    def mean(micro: MicroBatch) -> Tensor:
        nll = context.completion_nll(micro)
        return nll.row_total / nll.row_tokens

    with evaluating(context.model):
        return context.over_rows(rows, mean)


# -- the measures ------------------------------------------------------------------------------------------------------


def safety_sensitive_layer(context: StepContext, harmless: Sequence[TokenizedRow]) -> int:
    """The layer at which enlarged weights make refusing harmless prompts likelier than at any other."""
    rows, costs = refused(context, harmless), []
    for block in decoder_matrices(context.model):
        params = [matrix.layer.weight for matrix in block]
        with perturbed_weights(params, [ENLARGED * p.detach() for p in params]):  # type: ignore[arg-type, operator]
            costs.append(float(mean_nll(context, rows).mean()))
    return costs.index(min(costs))


def larf_scores(states: Tensor, unsafe: Tensor, safe: Tensor) -> Tensor:
    """mean_j cos(h, u_j) - cos(h, s_j) of states [rows, D]: [rows]."""
    h, u, s = (F.normalize(x, dim=-1) for x in (states, unsafe, safe))
    return (h @ u.T).mean(dim=1) - (h @ s.T).mean(dim=1)


def larf(context: StepContext, labelled: Labelled) -> Measure:
    """LARF on this model and these anchors."""
    layer = safety_sensitive_layer(context, labelled.benign[:NUM_PROBES])
    unsafe, safe = (
        states_at(context, rows[:NUM_ANCHORS], last_of_row)[:, layer] for rows in (labelled.harmful, labelled.benign)
    )
    return lambda rows: larf_scores(states_at(context, rows, last_of_row)[:, layer], unsafe, safe)


def compliance(complied: Tensor, declined: Tensor) -> tuple[int, Tensor]:
    """DataShield's layer, and c there, of length 1: from states [rows, L, D] of answers and of refusals."""
    direction = F.normalize(complied.mean(dim=0) - declined.mean(dim=0), dim=-1)  # [L, D]
    along, against = ((states * direction).sum(dim=-1) for states in (complied, declined))  # [rows, L]
    spread = (along.var(dim=0) / 2 + against.var(dim=0) / 2).sqrt().clamp(min=1e-12)
    layer = int(((along.mean(dim=0) - against.mean(dim=0)) / spread).argmax())
    return layer, direction[layer]


def datashield(context: StepContext, labelled: Labelled) -> Measure:
    """DataShield on this model and these anchors."""
    complied = states_at(context, labelled.harmful, last_of_row)
    layer, c = compliance(complied, states_at(context, refused(context, labelled.harmful), last_of_row))

    def score(rows: Sequence[TokenizedRow]) -> Tensor:
        ends, begins = (states_at(context, rows, place)[:, layer] for place in (last_of_row, last_of_prompt))
        return (ends - begins) @ c

    return score


def gradshield(context: StepContext, labelled: Labelled) -> Measure:
    """GradShield's score on this model, S from these anchors."""
    harmful = labelled.harmful[:NUM_PROBES]
    with evaluating(context.model):
        answering, refusing = (
            context.gradient("sequence_mean_nll", StepBatch.of(rows, context.batch_size)).gradients
            for rows in (harmful, refused(context, harmful))
        )
    safety, epsilon = difference(answering, refusing), GradShieldConfig().epsilon
    return lambda rows: difference_scores(context.parameters, lambda: mean_nll(context, rows), safety, epsilon).float()


def refusal_teacher(teacher: StepContext, labelled: Labelled) -> Measure:
    """The cosine with the refusal feature, of prompts as a teacher reads them."""
    layer = len(decoder_layers(teacher.model)) // 2
    harmful, benign = (
        states_at(teacher, rows, last_of_prompt)[:, layer].mean(dim=0) for rows in (labelled.harmful, labelled.benign)
    )
    feature = harmful - benign
    return lambda rows: F.cosine_similarity(states_at(teacher, rows, last_of_prompt)[:, layer], feature[None], dim=1)


# -- the teacher -------------------------------------------------------------------------------------------------------


class RefusalTeacher(Defence):
    """Alignment by SFT that also parts the middle layer's states of harmful and of harmless prompts.

    L = SFT + mean over harmful prompts of -cos(f, R) + mean over harmless ones of cos(f, R)
    """

    stage = Stage.ALIGNMENT
    about = About(
        summary="a teacher of which prompts are harmful", paper="2506.07356", forwards=5, backwards=3, extra_memory="-"
    )
    batches = (Role.HARMFUL, Role.BENIGN)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Add both cosines' gradients to plain SFT's."""
        plain = super().step(context, batches)
        with torch.no_grad():
            harmful, benign = (
                torch.cat([_features(context, micro) for micro in batches[role].micro_batches]).mean(dim=0)
                for role in self.batches
            )
        feature = harmful - benign
        gradients = plain.gradients
        for role, sign in ((Role.HARMFUL, -1.0), (Role.BENIGN, 1.0)):
            sweep = context.gradient(
                lambda micro, sign=sign: _cosine(context, micro, feature, sign),  # type: ignore[misc]
                batches[role],
            )
            gradients = combined(gradients, (1.0, sweep.gradients))
        return StepResult(gradients, plain.loss, rows=plain.rows)


def _features(context: StepContext, micro: MicroBatch) -> Tensor:
    """[B, D], with graph: the middle layer's output at the last token of each prompt."""
    layers = decoder_layers(context.model)
    with captured([layers[len(layers) // 2]]) as outputs:
        context.completion_logits(micro)
    return outputs[0][torch.arange(len(micro.rows)), last_of_prompt(micro)]


def _cosine(context: StepContext, micro: MicroBatch, feature: Tensor, sign: float) -> RowTerms:
    cosine = F.cosine_similarity(_features(context, micro), feature[None], dim=1)
    return RowTerms(sign * cosine, torch.ones_like(cosine))
