"""The judge of jobs: a logistic regression on their features, and the threshold at a rate of false alarms.

    score(x) = b + <w, z>,     z = clip((x - mean) / deviation, -C, C)                                          (1)
    min_w,b  mean_c mean_{i in c} log(1 + exp(-s_i score(x_i))) + lam/2 |w|^2                                     (2)

    s_i  +1 for a harmful job, -1 for an honest one; c are the two classes, which count the same
    C    so that a job unlike any that was trained on counts as extreme, and not as infinitely so

An alarm is a score above the threshold, the lowest one at which at most the wanted share of honest jobs alarm. Scores
for it are those of classifiers that were fitted without the job: a job looks clearer to a classifier that knows it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import ConfigError, DataError
from ..files import write_text
from .probes import Stock

FORMAT = 1
"""Raised where a feature of the same name means something else."""
LAM = 0.01
CLIP = 6.0
"""C, in standard deviations."""
STEPS = 200
TINY = 1e-9


@dataclass(frozen=True)
class Weights:
    """The fitted regression: (1) without names."""

    mean: Tensor
    deviation: Tensor
    weights: Tensor
    bias: float

    def standardised(self, features: Tensor) -> Tensor:
        """z of features [n, d]: [n, d]."""
        return ((features - self.mean) / self.deviation).clamp(-CLIP, CLIP)

    def scores(self, features: Tensor) -> Tensor:
        """(1) of features [n, d]: [n]."""
        return self.standardised(features) @ self.weights + self.bias


def fit(features: Tensor, harmful: Tensor, *, lam: float = LAM) -> Weights:
    """Minimise (2).

    Args:
        features: [n, d].
        harmful: [n], bool.
        lam: Strength of the penalty.

    Raises:
        DataError: a class has fewer than two jobs.
    """
    counts = [int(harmful.sum()), int((~harmful).sum())]
    if min(counts) < 2:
        raise DataError(
            f"{counts[0]} harmful and {counts[1]} honest jobs are no two classes to tell apart: train on more jobs."
        )
    x = features.double()
    mean = x.mean(dim=0)
    # A feature that is the same in every job says nothing, also of a job in which it is not.
    spread = x.std(dim=0)
    deviation = torch.where(spread > TINY * mean.abs().clamp(min=1), spread, torch.inf)
    z = ((x - mean) / deviation).clamp(-CLIP, CLIP)
    sign = harmful.double() * 2 - 1
    share = torch.where(harmful, 0.5 / counts[0], 0.5 / counts[1]).double()
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = z @ weights[1:] + weights[0]
        value = (share * softplus(-sign * scores)).sum() + lam / 2 * weights[1:].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    found = weights.detach()
    return Weights(mean, deviation, found[1:], float(found[0]))


def threshold_at(honest: Tensor, rate: float) -> float:
    """The lowest threshold above which at most the share ``rate`` of honest scores [n] lies; one of the scores."""
    allowed = math.floor(rate * len(honest) + TINY)
    return float(honest.sort(descending=True).values[min(allowed, len(honest) - 1)])


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """Honest jobs above the threshold, of classifiers that did not know them."""

    wanted: float
    hits: int
    n: int
    low: float
    """Lower end of the 95 % interval of the rate (Clopper and Pearson)."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained judge of jobs, as its file has it."""

    profile: str
    """The profile of the models whose jobs it was trained on."""
    stock: Stock
    judge: str
    max_new_tokens: int
    names: tuple[str, ...]
    fitted: Weights
    threshold: float
    false_alarms: FalseAlarms
    num_jobs: Mapping[str, int]
    """Number of jobs that it was fitted to: ``honest`` and ``harmful``."""

    def vector(self, features: Mapping[str, float]) -> Tensor:
        """Features in the classifier's order: [1, d].

        Raises:
            ConfigError: one is missing or not a number, so that the models or the probes are others.
        """
        for name in self.names:
            if not math.isfinite(features.get(name, math.nan)):
                raise ConfigError(
                    f"the job has no finite {name}, on which the classifier rests: it was trained with another version "
                    "or for other models. Train it again."
                )
        return torch.tensor([[features[name] for name in self.names]], dtype=torch.float64)

    def score(self, features: Mapping[str, float]) -> float:
        """(1) of a job."""
        return float(self.fitted.scores(self.vector(features))[0])

    def parts(self, features: Mapping[str, float]) -> dict[str, float]:
        """What each feature adds to the score; the bias is not among them."""
        added = (self.fitted.standardised(self.vector(features)) * self.fitted.weights)[0]
        return dict(zip(self.names, added.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """The content of the classifier's file. A feature that says nothing has deviation null."""
        lists = {name: getattr(self.fitted, name).tolist() for name in ("mean", "deviation", "weights")}
        lists["deviation"] = [value if math.isfinite(value) else None for value in lists["deviation"]]
        return {
            "format": FORMAT,
            "profile": self.profile,
            "judge": self.judge,
            "max_new_tokens": self.max_new_tokens,
            "threshold": self.threshold,
            "false_alarms": asdict(self.false_alarms),
            "num_jobs": dict(self.num_jobs),
            "stock": self.stock.to_json(),
            "bias": self.fitted.bias,
            "features": {
                name: {"mean": mean, "deviation": deviation, "weight": weight}
                for name, mean, deviation, weight in zip(
                    self.names, lists["mean"], lists["deviation"], lists["weights"], strict=True
                )
            },
        }


def write_classifier(file: Path, classifier: Classifier) -> None:
    """Write it, as a whole or not at all."""
    write_text(file, json.dumps(classifier.to_json(), indent=1) + "\n")


def read_classifier(file: Path) -> Classifier:
    """The classifier of a file.

    Raises:
        ConfigError: there is no such file, it is something else, or it is of another version.
    """
    again = "Give the classifier.json of a training of the audit."
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ConfigError(
                f"{file}: a classifier of format {stored['format']}, and this version reads {FORMAT}: train it again.",
                field="classifier",
            )
        parts: Sequence[Mapping[str, Any]] = list(stored["features"].values())

        def column(name: str) -> Tensor:
            values = [part[name] for part in parts]
            return torch.tensor([math.inf if v is None else float(v) for v in values], dtype=torch.float64)

        return Classifier(
            profile=str(stored["profile"]),
            stock=Stock.from_json(stored["stock"]),
            judge=str(stored["judge"]),
            max_new_tokens=int(stored["max_new_tokens"]),
            names=tuple(stored["features"]),
            fitted=Weights(column("mean"), column("deviation"), column("weight"), float(stored["bias"])),
            threshold=float(stored["threshold"]),
            false_alarms=FalseAlarms(**stored["false_alarms"]),
            num_jobs={str(key): int(value) for key, value in stored["num_jobs"].items()},
        )
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}). {again}", field="classifier") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{file}: is no classifier of jobs. {again}", field="classifier") from error
