"""Safe region: project the weights after every update into a region around the aligned ones that was found to be safe.

    w <- P_r(w)      the nearest point of  { v : |v - w_0| <= r }              after every step
    r <- max { r' <= r : safe(P_r'(w)) }   by bisection, where safe(w) fails   every ``check_every`` steps, and last

    safe(w)   q(w) >= tau * q(w_0)
    q(w)      mean over rows i of prod_t p(r_it | x_i, r_i<t; w) over t = 1 .. OPENING: the probability that the model
              begins its answer to the prompt x_i as the refusal r_i does; 0 to 1
    i         the provider's rows whose completion refuses (``declines``); no step here trains on them, but the
              alignment may have
    w_0       the weights when fine-tuning starts;  |.| as ``region`` says (primitives/projection.py)

A refusal is decided by its first tokens. The likelihood of the whole row hardly shows its loss: the tokens after
"i cannot" stay likely once "i cannot" is given, and the provider's harmless answers show nothing.

A penalty (EWC, LDIFS, Lisa) pulls back a little and can be outweighed; this is a bound, whatever the upload says. The
radius only ever shrinks. The run ends with a check, so that the weights that are saved have passed one.

This is an *empirical* safe region, not a certificate. A check that passes is evidence about these rows, in these words,
at the points that training visited; it says nothing about other prompts. The bisection assumes that q falls on the line
from w_0 to the weights. If it does not, the radius found still passes at this point, but it need not be the largest,
and a smaller one need not pass. If no radius passes, it is 0 from then on, and a warning says so.

Reference: Leo Elmecker-Plakolm, Pierre Fasterling, Philip Sosnin, Calvin Tsay, Matthew Wicker, Provably Safe Model
Updates, SaTML 2026, https://arxiv.org/abs/2512.01899: project each update onto a locally invariant domain. Departure:
there the domain (a box or zonotope) is certified by bound propagation over the parameters, which is out of reach for a
language model; here its radius is found by measuring. The projection is theirs, the guarantee is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.records import TokenizedRow
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...events import warn
from ...likelihood.completion import evaluating
from ...likelihood.microbatch import StepBatch
from ...mentions import setting
from ...primitives.projection import Region, extent, projected
from ...primitives.snapshots import from_state, snapshot, snapshot_state
from ...training.defence import About, Defence
from ...training.preparation import TrainingData
from ...training.step import Batches, StepContext, StepResult

OPENING = 5
"""Number of first tokens of a refusal that q counts; all of a shorter one, its end included."""

NUM_HALVINGS = 6
"""Steps of the bisection, which finds the radius to 1/64 of the weights' distance."""

_ROWS_PER_FORWARD = 16


@dataclass(frozen=True, kw_only=True)
class SafeRegionConfig:
    """Hyperparameters; the paper has none that fit a language model, so these are ours."""

    region: Region = "l2"
    """"l2": one ball for all trainable weights. "box": an interval for each weight. "spectral": a ball for each
    matrix."""
    radius: float = float("inf")
    """Largest radius, in units of the weights. Infinite: any radius that passes the check."""
    tau: float = 0.9
    """Share of q(w_0) that must remain, 0 to 1. 0: never checked."""
    num_rows: int = 64
    """Rows of the check, drawn with the run's seed from those that refuse; all of them if there are fewer."""
    check_every: int = 10
    """Optimiser steps between checks."""

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ConfigError(f"safe-region.radius is {self.radius}: a radius is 0 or more; infinity (.inf) is none.")
        if not 0 <= self.tau <= 1:
            raise ConfigError(f"safe-region.tau is {self.tau}: a share lies between 0 and 1.")
        for name in ("num_rows", "check_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"safe-region.{name} is {getattr(self, name)}: must be 1 or more.")


def opening(row: TokenizedRow) -> TokenizedRow:
    """The row up to token ``OPENING`` of its last completion, which alone counts."""
    start, end = row.spans[-1]
    end = min(end, start + OPENING)
    return replace(row, input_ids=row.input_ids[:end], spans=((start, end),))


class SafeRegion(Defence):
    """Defence of a plain step, and the projection after it."""

    config: SafeRegionConfig
    stage = Stage.FINETUNING
    about = About(
        summary="each update is projected into a region around the aligned weights in which refusals stay likely",
        paper="2512.01899",
        forwards=1,
        backwards=1,
        extra_memory="3 copies of the trainable weights; every few steps a forward over the refusals",
    )
    options = SafeRegionConfig
    reads_at_start = (Role.ALIGNMENT,)
    neutral = {"radius": float("inf"), "tau": 0.0}

    def __init__(self, config: SafeRegionConfig) -> None:
        self.config = config
        if config.region == "spectral":
            self.whole_weights = "singular values"
        self.centre: list[Tensor] = []  # w_0
        self.radius = config.radius
        self.refusing_at_start = 0.0  # q(w_0)
        self.refusing = 0.0  # q at the latest check

    def prepare(self, data: TrainingData) -> TrainingData:
        """Keep the provider's rows that refuse.

        Raises:
            DataError: no row refuses.
        """
        if self.config.tau == 0:
            return data
        unchecked = f"check nothing: {setting('options.tau', '0')}, with {setting('options.radius')}"
        return data.with_records(Role.ALIGNMENT, data.refusals("safe-region", instead=unchecked))

    def start(self, context: StepContext) -> None:
        """Keep w_0, and the refusals' probability there."""
        self.centre = snapshot(context.parameters)
        if self.config.tau:
            self.refusing = self.refusing_at_start = self._refusing(context)

    def step(self, context: StepContext, batches: Batches) -> StepResult:
        """Plain SFT."""
        plain = super().step(context, batches)
        metrics = {"radius": self.radius, "refusal_probability": self.refusing}
        return StepResult(plain.gradients, plain.loss, metrics, plain.rows)

    def after_update(self, context: StepContext) -> None:
        """Project the weights, and check them if a check is due."""
        self._project(context, [p.detach() for p in context.parameters], self.radius)
        if (context.step + 1) % self.config.check_every == 0:
            self._check(context)

    def finish(self, context: StepContext) -> None:
        """Check the weights that will be saved."""
        self._check(context)

    def _check(self, context: StepContext) -> None:
        """Shrink the region until its point nearest to the weights is safe; w_0 itself is."""
        if self.config.tau == 0:
            return
        self.refusing = self._refusing(context)
        if self._safe():
            return
        there = snapshot(context.parameters)
        farthest = extent(there, self.centre, self.config.region)
        safe, unsafe = 0.0, farthest
        for _ in range(NUM_HALVINGS):
            middle = (safe + unsafe) / 2
            self._project(context, there, middle)
            self.refusing = self._refusing(context)
            safe, unsafe = (middle, unsafe) if self._safe() else (safe, middle)
        self.radius = safe
        self._project(context, there, safe)
        self.refusing = self._refusing(context)
        if safe == 0:
            warn(
                f"safe-region, step {context.step + 1}: the weights had moved {farthest:.3g} from the start, and not "
                f"even 1/{2**NUM_HALVINGS} of that distance keeps {self.config.tau:g} of the refusals' probability. "
                "The radius is now 0: the weights are back at the start, and every later update is undone. Lower the "
                "learning rate, check_every or tau."
            )

    def _safe(self) -> bool:
        return self.refusing >= self.config.tau * self.refusing_at_start

    @torch.no_grad()
    def _project(self, context: StepContext, weights: list[Tensor], radius: float) -> None:
        """Set the model's weights to the region's point nearest to ``weights``."""
        if radius < float("inf"):
            for p, w in zip(
                context.parameters, projected(weights, self.centre, radius, self.config.region), strict=True
            ):
                p.copy_(w)

    def _refusing(self, context: StepContext) -> float:
        """Compute q(w), from the same rows on every rank."""
        rows = context.rows[Role.ALIGNMENT]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed)).tolist()
        openings = [opening(rows[i]) for i in order[: self.config.num_rows]]
        with evaluating(context.model):
            total, _ = context.sequence_nll(StepBatch.of(openings, _ROWS_PER_FORWARD))
        return float(torch.exp(-total.double()).mean())  # float32 has no numbers below e^-103

    def state(self) -> dict[str, Tensor]:
        """w_0, the radius, q(w_0) and the latest q."""
        numbers = torch.tensor([self.radius, self.refusing_at_start, self.refusing], dtype=torch.float64)
        return snapshot_state(self.centre, "centre") | {"numbers": numbers}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        self.centre = from_state(state, "centre")
        self.radius, self.refusing_at_start, self.refusing = state["numbers"].tolist()
