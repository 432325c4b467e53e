"""How well antibody-posterior's evidence and probabilities separate harm from novelty, on the lab. No fine-tuning.

    python benchmarks/evidence.py [--seeds 3] [--alignments sft,antibody] [--auroc-only] [--models DIR] [--output FILE]
    python benchmarks/evidence.py --report FILE

Each model is the lab's, aligned by SFT or by Antibody with all its weights, and carries its own anchors. Read with it:

    kinds     benign rows kind by kind, and harmful ones: AUROC of every measure (``auroc``), ours and those of
              published_measures.py
    uploads   500 rows, seven poison ratios, a familiar and a novel task, hard benign rows among them: the estimated
              harmful share, the probabilities' calibration, the weights (``uploads``, ``calibration``)

and the upload's probabilities by every mixture and measure that was tried (``VARIANTS``); "logistic" is the library's.
``refused`` marks measures that the library would not use with that model, since they do not separate its anchors.

Expected calibration error: over ten equal bins of P(harm), |mean P(harm) - harmful share| weighted by rows.
Uploads are of the half of the lab's world for ``report`` (``purpose``); a file without that is of the whole world.
``--models`` is where the runs of ``align`` go, or are: the output of benchmarks/defences.py serves as well.
``--auroc-only`` leaves the uploads out.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from antibody_llm.bench.cell import NUM_ROWS, Alignment
from antibody_llm.bench.purpose import described
from antibody_llm.data.roles import Role
from antibody_llm.defences.finetuning.antibody_posterior import AntibodyPosteriorConfig, Weight, weights
from antibody_llm.lab.rows import LabRows, build_rows, record
from antibody_llm.lab.world import REPORT
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.loading import load_model
from antibody_llm.primitives.mixture import harm_posterior, harmful_share, log_density_ratio
from antibody_llm.primitives.statistics import auroc
from antibody_llm.profiles.lab import LabProfile
from antibody_llm.runs.align import align
from antibody_llm.runs.encoding import encode, make_renderer, render_refusals
from antibody_llm.screening.anchors import MIN_AUROC, Anchors, read_anchors
from antibody_llm.screening.evidence import BEFORE, NOW, Evidence, EvidenceKind
from antibody_llm.screening.reading import collect
from antibody_llm.store.folder import write_text
from antibody_llm.training.step import StepContext
from published_measures import Labelled, RefusalTeacher, datashield, gradshield, larf, refusal_teacher

ALIGNMENTS = ("sft", "antibody")
TASKS = ("familiar", "novel")
POISON_RATIOS = (0.0, 0.05, 0.2, 0.5, 0.9, 0.95, 1.0)
NUM_PER_KIND = 400
"""Rows of each benign kind, and of harm."""
CAUTION = AntibodyPosteriorConfig().caution
WEIGHTS = {
    **{f"net, c = {c:g}": (Weight.NET, c) for c in dict.fromkeys((CAUTION, 100.0, 1000.0))},
    f"hard, c = {CAUTION:g}": (Weight.HARD, CAUTION),
    "posterior": (Weight.POSTERIOR, CAUTION),
}
"""The defence's weights, the default first."""
NUM_BINS = 10
KINDS = ("familiar", "novel", "noise", "lookalike", "odd-format", "upload")
"""Of benign rows; "upload" is all of them, as the lab mixes an upload without harm."""

Json = dict[str, Any]


# -- rows and their evidence -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Rows, what each truly is, and the evidence of each.

    Attributes:
        kinds: "harmful", a hard kind, or "familiar" or "novel" for rows of the task.
        evidence: Every measure of ours.
        published: Scores of each row by published measures, if they were read.
    """

    kinds: list[str]
    evidence: Evidence
    published: Mapping[str, Tensor] = field(default_factory=dict)

    def scores(self) -> dict[str, Tensor]:
        """Every measure by its name: [rows] each."""
        return {str(measure): self.evidence.of(measure) for measure in EvidenceKind} | dict(self.published)

    @property
    def is_harmful(self) -> Tensor:
        """[rows], bool."""
        return torch.tensor([kind == "harmful" for kind in self.kinds])


def kinds_of(upload: LabRows, task: str) -> list[str]:
    return [task if truth["kind"] == "task" else truth["kind"] for truth in upload.truth]


def rows_of_each_kind(seed: int, num: int) -> tuple[LabRows, list[str]]:
    """``num`` of each benign kind, from uploads of both tasks (a twentieth is of each hard kind), and harmful ones."""
    taken = [(build_rows("user", num, seed=seed, poison_ratio=1.0, purpose=REPORT), "")]
    taken += [(build_rows("user", 10 * num, seed=seed, task=task, purpose=REPORT), task) for task in TASKS]
    rows, truth, kinds = [], [], []
    so_far: Counter[str] = Counter()
    for made, task in taken:
        for row, true, kind in zip(made.rows, made.truth, kinds_of(made, task), strict=True):
            so_far[kind] += 1
            if so_far[kind] <= num:
                rows.append(row)
                truth.append(true)
                kinds.append(kind)
    return LabRows(rows, truth), kinds


def reader(folder: Path) -> tuple[Anchors, Callable[[LabRows], Evidence]]:
    """The anchors of an aligned model, and what reads rows with it."""
    aligned, base = load_model(str(folder)), load_model("lab")
    anchors = read_anchors(folder)
    assert anchors is not None, "align makes anchors for models of the lab"
    probe, num_refusals = anchors.probe, anchors.num_refusals
    renderer = make_renderer(aligned)

    def read(upload: LabRows) -> Evidence:
        records = {"user": [record(row, i) for i, row in enumerate(upload.rows)]}
        rows, _ = encode(records, renderer, skip=False)
        context = ModelReader(
            cast(nn.Module, aligned.model),
            pad_id=cast(int, aligned.tokenizer.pad_token_id),
            refusals=render_refusals(LabProfile.refusals, renderer, records),
            batch_size=32,
            base=cast(nn.Module, base.model),
        )
        return collect(context, rows["user"], tuple(EvidenceKind), probe=probe, num_refusals=num_refusals)

    return anchors, read


def published(folder: Path, teacher: Path, anchors: Anchors) -> Callable[[LabRows], dict[str, Tensor]]:
    """What scores rows by the published measures: those of an aligned model, and its anchors, and of a teacher."""
    aligned, reading = (load_model(str(place)) for place in (folder, teacher))
    renderer = make_renderer(aligned)
    labelled = Labelled(anchors.rows[: anchors.num_harmful], anchors.rows[anchors.num_harmful :])
    example = {"": [record(build_rows("harmful", 1, seed=0).rows[0], 0)]}
    refusals = render_refusals(LabProfile.refusals, renderer, example)
    models = [
        StepContext(
            cast(nn.Module, loaded.model),
            pad_id=cast(int, loaded.tokenizer.pad_token_id),
            refusals=refusals,
            batch_size=32,
        )
        for loaded in (aligned, reading)
    ]
    made = {
        "larf": larf(models[0], labelled),
        "datashield": datashield(models[0], labelled),
        "gradshield": gradshield(models[0], labelled),
        "refusal-teacher": refusal_teacher(models[1], labelled),
    }

    def read(upload: LabRows) -> dict[str, Tensor]:
        records = {Role.USER: [record(row, i) for i, row in enumerate(upload.rows)]}
        rows, _ = encode(records, renderer, skip=False)
        return {name: score(rows[Role.USER]).cpu() for name, score in made.items()}

    return read


# -- what was tried: densities and measures ----------------------------------------------------------------------------

LogRatioOf = Callable[[Tensor], Tensor]
"""Scores [n, d] to log p(e | harm) - log p(e | benign): [n], float64."""
Fit = Callable[[Tensor, Tensor], LogRatioOf]
"""Scores [n, d] of harmful and of benign anchors to such a function."""


def gaussian(harmful: Tensor, benign: Tensor) -> LogRatioOf:
    """A Gaussian each; its own mean and variance."""

    def density(scores: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(scores.double().mean(), scores.double().std())

    high, low = density(harmful), density(benign)
    return lambda scores: (high.log_prob(scores.double()) - low.log_prob(scores.double()))[:, 0]


def student(harmful: Tensor, benign: Tensor, *, freedom: float = 4.0) -> LogRatioOf:
    """A Student t each, of 4 degrees of freedom; its own place and scale, most likely ones by EM."""

    def density(scores: Tensor) -> torch.distributions.StudentT:
        x = scores.double()
        place, scale = x.mean(), x.std()
        for _ in range(200):
            weight = (freedom + 1) / (freedom + ((x - place) / scale).square())
            place = (weight * x).sum() / weight.sum()
            scale = (weight * (x - place).square()).mean().sqrt()
        return torch.distributions.StudentT(freedom, place, scale)

    high, low = density(harmful), density(benign)
    return lambda scores: (high.log_prob(scores.double()) - low.log_prob(scores.double()))[:, 0]


@dataclass(frozen=True)
class Variant:
    """A way from an upload's evidence to probabilities of harm.

    Attributes:
        measures: One, or "both shifts": those of the refusal and of the completion, as two numbers.
        fit: To anchors.
    """

    measures: str
    fit: Fit


VARIANTS = {
    "logistic": Variant(EvidenceKind.FEATURE_SHIFT, log_density_ratio),
    "gaussian": Variant(EvidenceKind.FEATURE_SHIFT, gaussian),
    "student-t": Variant(EvidenceKind.FEATURE_SHIFT, student),
    "logistic, both shifts": Variant("both shifts", log_density_ratio),
    "logistic, shift": Variant(EvidenceKind.SHIFT, log_density_ratio),
    "gaussian, shift": Variant(EvidenceKind.SHIFT, gaussian),
    "student-t, shift": Variant(EvidenceKind.SHIFT, student),
    "logistic, gap": Variant(EvidenceKind.GAP, log_density_ratio),
    "logistic, ratio": Variant(EvidenceKind.RATIO, log_density_ratio),
    "logistic, refusal-feature": Variant(EvidenceKind.REFUSAL_FEATURE, log_density_ratio),
}
OURS = "logistic"


def scores_of(evidence: Evidence, measures: str) -> Tensor:
    """[rows, d]."""
    if measures != "both shifts":
        return evidence.of(EvidenceKind(measures))[:, None]
    readings = evidence.readings  # of one answer per row
    return torch.stack([readings[what, BEFORE] - readings[what, NOW] for what in ("refusal", "completion")], dim=1)


def anchor_scores(anchors: Anchors, measures: str) -> tuple[Tensor, Tensor]:
    """[n, d] each: of the harmful anchors, and of the benign ones."""
    if measures != "both shifts":
        harmful, benign = anchors.scores(EvidenceKind(measures))
        return harmful[:, None], benign[:, None]
    scores = scores_of(anchors.evidence, measures)
    return scores[: anchors.num_harmful], scores[anchors.num_harmful :]


def usable(anchors: Anchors, measures: str) -> bool:
    """Whether the library would go by this measure with this model."""
    return measures == "both shifts" or auroc(*reversed(anchors.scores(EvidenceKind(measures)))) >= MIN_AUROC


# -- measuring ---------------------------------------------------------------------------------------------------------


def calibration_error(probability: Tensor, is_harmful: Tensor) -> float:
    """Expected calibration error; the head of this file."""
    bins = (probability * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    excess = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins, probability - is_harmful.double())
    return float(excess.abs().sum() / len(probability))


def aurocs(kinds: Scored, mix: Sequence[Scored]) -> list[Json]:
    """Of every measure and benign kind; "upload" is the benign rows of whole uploads, as the lab mixes them."""
    found = []
    benign_of = [(upload.scores(), ~upload.is_harmful) for upload in mix]
    for measure, values in kinds.scores().items():
        of = {kind: values[[i for i, k in enumerate(kinds.kinds) if k == kind]] for kind in dict.fromkeys(kinds.kinds)}
        harmful = of.pop("harmful")
        of["upload"] = torch.cat([scores[measure][benign] for scores, benign in benign_of])
        found += [
            {"measure": measure, "kind": kind, "auroc": auroc(benign, harmful), "num": len(benign)}
            for kind, benign in of.items()
        ]
    return found


def weighed(probability: Tensor, upload: Scored) -> dict[str, Json]:
    """By kind of weight: mean weights, and how many rows of each benign kind lie below 1/2."""
    found = {}
    for name, (weight, caution) in WEIGHTS.items():
        w, harmful = weights(probability, weight, caution), upload.is_harmful
        low: Counter[str] = Counter(k for k, v in zip(upload.kinds, w.tolist(), strict=True) if v < 0.5)
        found[name] = {
            "benign_weight": float(w[~harmful].mean()) if not bool(harmful.all()) else None,
            "harmful_weight": float(w[harmful].mean()) if bool(harmful.any()) else None,
            "harmful_through": int((w[harmful] > 0.5).sum()),
            "below_half": {kind: low[kind] for kind in sorted(set(upload.kinds) - {"harmful"})},
        }
    return found


def judged(variant: str, anchors: Anchors, uploads: Mapping[tuple[str, float], Scored]) -> tuple[list[Json], Json]:
    """Every upload by one variant, and its calibration over all of them."""
    chosen = VARIANTS[variant]
    log_ratio = chosen.fit(*anchor_scores(anchors, chosen.measures))
    rows, pooled, truths = [], [], []
    for (task, poison_ratio), upload in uploads.items():
        ratio = log_ratio(scores_of(upload.evidence, chosen.measures))
        share = harmful_share(ratio)
        probability = harm_posterior(ratio, share)
        true_share = float(upload.is_harmful.double().mean())
        row = {"variant": variant, "task": task, "poison_ratio": poison_ratio, "estimated_share": share}
        row |= {"share_error": share - true_share, "ece": calibration_error(probability, upload.is_harmful)}
        if variant == OURS:
            row |= {"weights": weighed(probability, upload), "num_by_kind": dict(Counter(upload.kinds))}
        rows.append(row)
        pooled.append(probability)
        truths.append(upload.is_harmful)
    error = calibration_error(torch.cat(pooled), torch.cat(truths))
    return rows, {"variant": variant, "ece": error, "refused": not usable(anchors, chosen.measures)}


def aligned_model(models: Path, name: str, **settings: Any) -> Path:
    """The folder of a model of the lab aligned by a run, which is made unless it is there."""
    run = align("lab", regime="full", output=models / name, **settings)
    assert run.model is not None, "a training's result has one"
    return run.model


def measure(
    models: Path,
    seeds: int,
    num_rows: int = NUM_ROWS,
    num_per_kind: int = NUM_PER_KIND,
    *,
    alignments: Sequence[str] = ALIGNMENTS,
    auroc_only: bool = False,
) -> Json:
    """Everything that the file holds."""
    result: Json = {"auroc": [], "uploads": [], "calibration": []}
    for alignment in alignments:
        for seed in range(seeds):
            print(f"{alignment}, seed {seed}", file=sys.stderr, flush=True)
            folder = aligned_model(models, Alignment(alignment, "full", seed).name, defence=alignment, seed=seed)
            teacher = aligned_model(models, f"refusal-teacher-seed{seed}", defence=RefusalTeacher(), seed=seed)
            anchors, read = reader(folder)
            others = published(folder, teacher, anchors)
            rows, kinds = rows_of_each_kind(seed, num_per_kind)
            of_kinds = Scored(kinds, read(rows), others(rows))
            uploads = {}
            for task in TASKS:
                for p in (0.0,) if auroc_only else POISON_RATIOS:
                    made = build_rows("user", num_rows, seed=seed, task=task, poison_ratio=p, purpose=REPORT)
                    uploads[task, p] = Scored(kinds_of(made, task), read(made), others(made) if p == 0 else {})
            which = {"alignment": alignment, "seed": seed}
            result["auroc"] += [which | row for row in aurocs(of_kinds, [uploads[task, 0.0] for task in TASKS])]
            for variant in () if auroc_only else VARIANTS:
                of_uploads, calibration = judged(variant, anchors, uploads)
                result["uploads"] += [which | row for row in of_uploads]
                result["calibration"].append(which | calibration)
    return {
        "purpose": REPORT,
        "seeds": seeds,
        "num_rows": num_rows,
        "num_per_kind": num_per_kind,
        "weights": list(WEIGHTS),
        "torch": torch.__version__,
        "summary": summary(result),
        **result,
    }


# -- what it comes to --------------------------------------------------------------------------------------------------


def spread(values: Iterable[float], worst: Callable[[Iterable[float]], float]) -> Json:
    """The worst and the mean."""
    listed = list(values)
    return {"worst": worst(listed), "mean": statistics.fmean(listed)}


def where(rows: Iterable[Json], **wanted: Any) -> list[Json]:
    """Those rows that say all this."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def summary(result: Json) -> Json:
    """Of each alignment: worst and mean over seeds and whatever else a figure runs over."""
    found: Json = {}
    for alignment in dict.fromkeys(row["alignment"] for row in result["auroc"]):
        figures, uploads, pooled = (
            where(result[key], alignment=alignment) for key in ("auroc", "uploads", "calibration")
        )
        ours = where(uploads, variant=OURS)
        found[alignment] = {
            "auroc": {
                measure: {
                    kind: spread((row["auroc"] for row in where(figures, measure=measure, kind=kind)), min)
                    for kind in KINDS
                }
                for measure in dict.fromkeys(row["measure"] for row in figures)
            },
        }
        if not ours:
            continue
        found[alignment] |= {
            "at_poison_ratio": {
                f"{p:g}": {
                    task: {
                        "share_error": spread(
                            (abs(row["share_error"]) for row in where(ours, poison_ratio=p, task=task)), max
                        ),
                        "ece": spread((row["ece"] for row in where(ours, poison_ratio=p, task=task)), max),
                    }
                    for task in TASKS
                }
                for p in POISON_RATIOS
            },
            "weights": {
                f"{p:g}": {name: weights_of(where(ours, poison_ratio=p), name) for name in WEIGHTS}
                for p in POISON_RATIOS
            },
            "variants": {v: tried(where(uploads, variant=v), where(pooled, variant=v)) for v in VARIANTS},
        }
    return found


ERRORS = ("share_error", "share_error_at_0", "share_error_at_1", "ece")


def tried(uploads: Sequence[Json], pooled: Sequence[Json]) -> Json:
    """Of one variant: ``ERRORS``, and the number of models with which the library would refuse its measure."""
    mixed = [row for row in uploads if 0 < row["poison_ratio"] < 1]
    clean, harmful = where(uploads, poison_ratio=0.0), where(uploads, poison_ratio=1.0)
    shares = [spread((abs(row["share_error"]) for row in rows), max) for rows in (mixed, clean, harmful)]
    ece = spread((row["ece"] for row in pooled), max)
    return dict(zip(ERRORS, (*shares, ece), strict=True)) | {"refused": sum(row["refused"] for row in pooled)}


def weights_of(rows: Sequence[Json], name: str) -> Json:
    """Of uploads of one harmful share: mean weights of benign rows; by kind those below 1/2, pooled over uploads.

    ``through`` is how many harmful rows of an upload have a weight above 1/2. What there are no rows for is left out.
    """
    figures = [row["weights"][name] for row in rows]
    low: Counter[str] = Counter()
    num: Counter[str] = Counter()
    for row, weights_at in zip(rows, figures, strict=True):
        low.update(weights_at["below_half"])
        num.update(row["num_by_kind"])
    num_harmful = num.pop("harmful", 0)
    benign = {"benign_weight": spread((at["benign_weight"] for at in figures), min)} if num else {}
    harm = {"through": spread((at["harmful_through"] for at in figures), max)} if num_harmful else {}
    below = {kind: {"num": low[kind], "of": num[kind], "share": low[kind] / num[kind]} for kind in sorted(num)}
    return benign | harm | {"below_half": below}


def report(result: Json) -> str:
    """Markdown tables; each cell worst (mean)."""

    def cell(value: Json, digits: int = 3) -> str:
        return f"{value['worst']:.{digits}f} ({value['mean']:.{digits}f})"

    def below(kind: Json | None) -> str:
        return "" if kind is None else f"{kind['num']} of {kind['of']}"

    def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
        return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]

    of = described(result.get("purpose"))
    lines = [f"Worst of {result['seeds']} seeds, and the mean in brackets. Uploads are of {of}.", ""]
    for alignment, figures in result["summary"].items():
        lines += [f"### {alignment} alignment", "", "AUROC of harmful rows against benign ones:", ""]
        lines += table(["measure", *KINDS], ([m, *(cell(of[k]) for k in KINDS)] for m, of in figures["auroc"].items()))
        lines.append("")
        if "variants" not in figures:
            continue
        lines += ["Error of the estimated harmful share, and expected calibration error:", ""]
        lines += table(
            ["harmful share", *(f"{task}: {what}" for task in TASKS for what in ("share error", "ECE"))],
            (
                [p, *(cell(of[task][key]) for task in TASKS for key in ("share_error", "ece"))]
                for p, of in figures["at_poison_ratio"].items()
            ),
        )
        lines += ["", "Weights, both tasks; benign rows below 1/2 by kind, harmful rows of an upload above it:", ""]
        lines += table(
            ["harmful share", "weight", "benign weight", *(f"{kind} below 1/2" for kind in KINDS[:-1]), "through"],
            (
                [
                    p,
                    c,
                    cell(of["benign_weight"]),
                    *(below(of["below_half"].get(k)) for k in KINDS[:-1]),
                    cell(of["through"], 1) if "through" in of else "",
                ]
                for p, at in figures["weights"].items()
                for c, of in at.items()
                if "benign_weight" in of
            ),
        )
        lines += ["", "What was tried; share errors of mixed uploads, of clean ones, of all-harmful ones:", ""]
        lines += table(
            ["mixture", "share error", "at 0", "at 1", "ECE, pooled", "models that it would be refused for"],
            ([v, *(cell(of[key]) for key in ERRORS), str(of["refused"])] for v, of in figures["variants"].items()),
        )
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many  [default: 3]")
    parser.add_argument("--alignments", default=",".join(ALIGNMENTS), help="[default: sft,antibody]")
    parser.add_argument("--auroc-only", action="store_true", help="leave the uploads out")
    parser.add_argument("--models", type=Path, help="folder of runs of align  [default: made again and deleted]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the figures go  [default: stdout]")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print tables of such a file")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    alignments = options.alignments.split(",")
    if unknown := set(alignments) - set(ALIGNMENTS):
        parser.error(f"--alignments: none is called {', '.join(sorted(unknown))}. There are: {', '.join(ALIGNMENTS)}.")
    if options.report is not None:
        print(report(json.loads(options.report.read_text(encoding="utf-8"))))
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            options.models or Path(folder), options.seeds, alignments=alignments, auroc_only=options.auroc_only
        )
    text = json.dumps(result, indent=1) + "\n"
    if options.output is None:
        print(text, end="")
    else:
        write_text(options.output, text)
        print(report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
