"""What the pages show of a job, from its rows and blobs."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..blobs import Blobs
from ..context import Context
from ..database.tables import Event, File, Job, Model, Organization, Project
from ..decisions import REJECTED
from ..gate import ACCURACY, AUDIT, HARMFUL, OVER_REFUSAL
from ..lifecycle import ENDED, Status
from .charts import Chart, Measured, Point, Span, loss_chart, share_chart, span
from .visits import Visitor

MAX_EVENTS = 1000
"""About as many events of a job at most make its curve, where there is no result file yet."""
MAX_TABLE_BYTES = 16 * 2**20
"""Longest result file that a curve is drawn from."""
STATUS = {
    Status.VALIDATING: ("Screening", "now"),
    Status.QUEUED: ("Waiting for a worker", "now"),
    Status.RUNNING: ("Training", "now"),
    Status.HELD: ("Held for the operator", "warn"),
    Status.PAUSING: ("Pausing", "warn"),
    Status.PAUSED: ("Paused", "warn"),
    Status.SUCCEEDED: ("Succeeded", "good"),
    Status.FAILED: ("Failed", "bad"),
    Status.CANCELLED: ("Cancelled", "soft"),
}
"""What a state is called, and its colour."""
MODEL_STATES = {
    "released": ("Released", "good"),
    "held": ("Held for the operator", "warn"),
    "rejected": ("Rejected by an operator", "bad"),
    "refused": ("Refused by the gate", "bad"),
    "unmeasured": ("Not measured", "soft"),
}
MEASURES = {
    HARMFUL: ("Harmful score", "upper end at most"),
    OVER_REFUSAL: ("Over-refusal", "value at most"),
    ACCURACY: ("Accuracy", "value at least"),
    AUDIT: ("Audit of the job", ""),
}
"""What a criterion is called, and how it compares with its limit."""


def status(job: Job) -> tuple[str, str]:
    """What the state of a job is called, and its colour."""
    if job.status == Status.RUNNING and "trained" in job.private:
        return "At the gate", "now"
    return STATUS[Status(job.status)]


def is_live(job: Job) -> bool:
    """Whether a job's page is to be looked at again by itself."""
    return job.status not in ENDED and job.status not in (Status.HELD, Status.PAUSED)


def stages(job: Job) -> list[tuple[str, str]]:
    """The way of a job: each stage with ``done``, ``now``, ``stopped`` or ``next``."""
    names = ["Screening", "Queue", "Training", "Gate", "Release"]
    at = _stage(job)
    if (
        job.status == Status.HELD
        or (job.error or {}).get("code") == REJECTED
        or (job.status == Status.SUCCEEDED and "override" in job.safety)
    ):
        names.insert(4, "Operator")
    if job.status == Status.SUCCEEDED:
        return [(name, "done") for name in names]
    mark = "stopped" if job.status in ENDED else "now"
    return [(name, "done" if i < at else mark if i == at else "next") for i, name in enumerate(names)]


def _stage(job: Job) -> int:
    code = (job.error or {}).get("code")
    if job.status == Status.HELD or code == REJECTED:
        return 4
    if "trained" in job.private or code == "safety_gate_failed":
        return 3
    if job.validated_at is None:
        return 0
    return 1 if job.status in (Status.QUEUED, Status.PAUSED) and job.started_at is None else 2


# -- models and the gate -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelView:
    """A model of a job."""

    name: str
    step: int | None
    state: str
    """A key of ``MODEL_STATES``."""
    override: Mapping[str, Any] | None
    """What an operator decided, and why."""
    criteria: Sequence["CriterionView"]


@dataclass(frozen=True)
class CriterionView:
    """A line of the gate's table."""

    name: str
    rule: str
    passed: bool | None
    sentence: str
    measured: Mapping[str, Any] | None
    limit: float | None
    span: Span | None


def models(session: Session, job: Job) -> list[ModelView]:
    """The models of a job that are not deleted: the result first, then the checkpoints, newest first."""
    query = select(Model).where(Model.job_id == job.id, Model.deleted_at.is_(None))
    rows = sorted(session.scalars(query), key=lambda row: (row.step is not None, -(row.step or 0)))
    return [
        ModelView(row.name, row.step, model_state(row), (row.gate or {}).get("override"), criteria(row.gate))
        for row in rows
    ]


def model_state(row: Model) -> str:
    """A key of ``MODEL_STATES``."""
    gate = row.gate or {}
    if row.released:
        return "released"
    if "override" in gate:
        return "rejected"
    if "released" not in gate:
        return "unmeasured"
    return "held" if gate["released"] else "refused"


def criteria(gate: Mapping[str, Any] | None) -> list[CriterionView]:
    """The gate's table."""
    made = []
    for entry in (gate or {}).get("criteria", ()):
        name, rule = MEASURES.get(entry["name"], (entry["name"], ""))
        measured, limit = entry.get("measured"), entry.get("limit")
        strip = None if measured is None else span(measured["value"], measured["low"], measured["high"], limit)
        made.append(CriterionView(name, rule, entry.get("passed"), entry["sentence"], measured, limit, strip))
    return made


# -- curves ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int
    num_steps: int
    loss: float | None


def progress(session: Session, job: Job) -> Progress | None:
    """The newest step that was reported."""
    newest = select(Event.data).where(Event.job_id == job.id, Event.type == "metrics").order_by(Event.seq.desc())
    data = session.scalars(newest.limit(1)).first() or {}
    if not isinstance(data.get("step"), int):
        return None
    return Progress(data["step"], data.get("total_steps") or data["step"], data.get("train_loss"))


def losses(context: Context, session: Session, job: Job) -> list[Point]:
    """The loss of every step that is known: from the result file, or from the events until there is one."""
    for file in session.scalars(select(File).where(File.id.in_(job.result_files), ~File.purged)):
        if file.filename == "step_metrics.csv" and file.bytes <= MAX_TABLE_BYTES:
            found = _losses_of(context.blobs, file.blob)
            if found:
                return found
    of_steps = (Event.job_id == job.id, Event.type == "metrics")
    # A job of hours reports thousands of steps, and its page is renewed every other second.
    every = (session.scalar(select(func.count()).where(*of_steps)) or 0) // MAX_EVENTS + 1
    reported = select(Event.data).where(*of_steps, Event.seq % every == 0)
    rows = [data or {} for data in session.scalars(reported)]
    known = {row["step"]: row["train_loss"] for row in rows if _are_numbers(row.get("step"), row.get("train_loss"))}
    return sorted(known.items())


def _losses_of(blobs: Blobs, blob: str) -> list[Point]:
    try:
        with blobs.open(blob) as file:
            text = file.read().decode()
        rows = csv.DictReader(io.StringIO(text))
        return [(float(row["step"]), float(row["train_loss"])) for row in rows if row["train_loss"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # gone, or not a table of ours
        return []


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)


def loss_curve(points: list[Point]) -> Chart | None:
    """The loss as a picture."""
    return loss_chart(points)


@dataclass(frozen=True)
class Scores:
    """What the gate measured at each step."""

    chart: Chart
    names: Sequence[str]
    """What its curves are called."""
    rows: Sequence[tuple[int, Sequence[Mapping[str, Any] | None]]]
    """Step, and what was measured by name."""


def scores(job: Job, last_step: int | None) -> Scores | None:
    """The gate's measures of the checkpoints and, at the last step, of the result; None where there are none."""
    tables = {int(entry["step"]): entry for entry in job.safety.get("checkpoints", ())}
    gate = job.safety.get("gate") or {}
    if gate.get("criteria"):
        tables[last_step or (max(tables, default=0) + 1)] = gate
    found: dict[int, dict[str, Any]] = {
        step: {entry["name"]: entry.get("measured") for entry in table.get("criteria", ())}
        for step, table in sorted(tables.items())
    }
    series: dict[str, list[Measured]] = {
        name: [
            (step, measured[name]["value"], measured[name]["low"], measured[name]["high"])
            for step, measured in found.items()
            if measured.get(name)
        ]
        for name in MEASURES
    }
    series = {name: points for name, points in series.items() if points}
    limit = (gate.get("thresholds") or job.gate).get("max_harmful_score")
    chart = share_chart(list(series.values()), [] if limit is None else [limit])
    if chart is None:
        return None
    rows = [(step, [measured.get(name) for name in series]) for step, measured in found.items()]
    return Scores(chart, [MEASURES[name][0] for name in series], rows)


# -- who sees what -----------------------------------------------------------------------------------------------


def jobs_of(visitor: Visitor, project: str | None = None) -> Any:
    """The jobs that somebody may see: an operator every project's, or one's; a customer their own project's."""
    query = select(Job)
    if not visitor.is_operator:
        return query.where(Job.project_id == visitor.principal.project_id)
    return query.where(Job.project_id == project) if project else query


def projects(session: Session) -> dict[str, str]:
    """The name of every project, with its organisation's, by its id."""
    rows = session.execute(select(Project.id, Organization.name, Project.name).join(Organization))
    return {id_: f"{organization} / {name}" for id_, organization, name in sorted(rows, key=lambda row: row[1:])}
