"""How a job comes to be: what is asked, checked against files, models and policy, once for each request."""

import json
import secrets
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .auth import Principal
from .bodies import MAX_SEED, DpoHyperparameters, GateChoice, Hyperparameters, JobCreate
from .context import Context
from .database.tables import Creation, File, Job, JobLabel
from .errors import ApiError
from .files import own_file
from .ids import new_id
from .lifecycle import ACTIVE, Status, record_event
from .models import resolve

MIN_ROWS = 10
REPEAT_SECONDS = 900
"""A request that says it is a repetition gets the job of the same request in so many seconds before it."""
UNMARKED_SECONDS = 60
"""A request of another client does not say whether it is a repetition, and gets the job within so many seconds."""
NOT_TRAINED = {
    "reinforcement": "a reward can be raised by harm that no row shows, and no defence here has been measured against "
    "it.",
}
"""Methods of the API that a job is refused for, and why."""


def create_job(context: Context, caller: Principal, body: JobCreate, *, repetition: int | None) -> tuple[Job, bool]:
    """The job of a request, and whether an earlier sending of the same request created it.

    The client sends a request up to three times, without a mark that would tie them together, and counts them: the
    first sending always creates a job, a later one only where the first never arrived.

    Args:
        context: The server.
        caller: Who asks.
        body: What for.
        repetition: The client's count of sendings, 0 for the first; None: it does not count.
    """
    asked = json.dumps([caller.key_id, caller.project_id, body.model_dump(mode="json")], sort_keys=True)
    digest = sha256(asked.encode()).hexdigest()
    while True:
        try:
            with context.database.write() as session:
                now = context.database.now(session)
                earlier = _earlier(session, digest, repetition, now)
                if earlier is not None:
                    return earlier, True
                job = _made(session, context, caller, body, now)
                session.add(Creation(digest=digest, job_id=job.id, created_at=now, first_seen=repetition in (0, None)))
                return job, False
        except IntegrityError:  # another sending of it was stored in between
            continue


def _earlier(session: Session, digest: str, repetition: int | None, now: float) -> Job | None:
    row = session.scalars(select(Creation).where(Creation.digest == digest).with_for_update()).first()
    if row is None:
        return None
    age = now - row.created_at
    if repetition == 0:
        same = not row.first_seen and age < REPEAT_SECONDS  # a repetition overtook it
    else:
        same = age < (UNMARKED_SECONDS if repetition is None else REPEAT_SECONDS)
    job = session.scalars(select(Job).where(Job.id == row.job_id)).first() if same else None
    if job is None:
        session.execute(delete(Creation).where(Creation.digest == digest))
    elif repetition == 0:
        row.first_seen = True
    return job


def _made(session: Session, context: Context, caller: Principal, body: JobCreate, now: float) -> Job:
    method, hyperparameters = _method(body)
    base, parent = resolve(session, context, caller, body.model, param="model")
    training = _rows(session, caller, body.training_file, method, now, param="training_file", least=MIN_ROWS)
    if body.validation_file is not None:
        _rows(session, caller, body.validation_file, method, now, param="validation_file", least=1)
    _check_number(session, context, caller, now)
    job = Job(
        id=new_id("ftjob-"),
        organization_id=caller.organization_id,
        project_id=caller.project_id,
        key_id=caller.key_id,
        created_at=now,
        status=Status.VALIDATING,
        model=body.model,
        base=base,
        parent=parent,
        training_file=body.training_file,
        validation_file=body.validation_file,
        method=method,
        hyperparameters=hyperparameters,
        seed=secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed,
        suffix=body.suffix,
        integrations=None if body.integrations is None else [each.model_dump() for each in body.integrations],
        labels=body.metadata or None,
        defence=_defence(context, body, method),
        gate=_gate(context, body.gate),
        safety={},
        private={},
        result_files=[],
        token=0,
        attempts=0,
    )
    session.add(job)
    session.flush()
    for name, value in (body.metadata or {}).items():
        session.add(JobLabel(job_seq=job.seq, name=name, value=value, project_id=job.project_id))
    record_event(session, job, f"Created fine-tuning job: {job.id}", now=now)
    rows = (training.validation or {}).get("num_rows")
    record_event(session, job, f"Validating training file: {training.id}", now=now, data={"num_rows": rows})
    return job


def _method(body: JobCreate) -> tuple[str, dict[str, Any]]:
    """The method and its hyperparameters, from ``method`` or from the deprecated field beside it."""
    kind = "supervised" if body.method is None else body.method.type
    if kind in NOT_TRAINED:
        message = f"method.type '{kind}' is not supported: {NOT_TRAINED[kind]} Use 'supervised' or 'dpo'."
        raise ApiError(400, message, code="unsupported_method", param="method.type")
    for other in ("supervised", "dpo", "reinforcement"):
        if other != kind and body.method is not None and getattr(body.method, other) is not None:
            raise ApiError(
                400,
                f"method.{other} is given, but method.type is '{kind}'. Give method.{kind}.",
                code="invalid_value",
                param=f"method.{other}",
            )
    chosen = getattr(body.method, kind) if body.method is not None else None
    given = None if chosen is None else chosen.hyperparameters
    if given is not None and body.hyperparameters is not None:
        raise ApiError(
            400,
            f"hyperparameters are given twice. Leave out the deprecated field and keep method.{kind}.hyperparameters.",
            code="invalid_value",
            param="hyperparameters",
        )
    if kind == "dpo" and body.hyperparameters is not None:
        raise ApiError(
            400,
            "hyperparameters are those of the supervised method. Give method.dpo.hyperparameters.",
            code="invalid_value",
            param="hyperparameters",
        )
    default = DpoHyperparameters() if kind == "dpo" else Hyperparameters()
    return kind, (given or body.hyperparameters or default).asked()


def _rows(
    session: Session, caller: Principal, file_id: str, method: str, now: float, *, param: str, least: int
) -> File:
    """A file that a job can train on or measure with."""
    row = session.scalars(select(File).where(File.id == file_id, File.project_id == caller.project_id)).first()
    if row is None:  # 400, as the hosted API does for an id inside a body
        raise ApiError(400, f"{param}: no such file: {file_id[:64]!r}.", code="invalid_" + param, param=param)
    row = own_file(session, caller, file_id, now=now, param=param)
    code = f"invalid_{param}"
    if row.purpose != "fine-tune":
        message = f"{row.id} was uploaded for '{row.purpose}'. Upload it again with purpose 'fine-tune'."
        raise ApiError(400, message, code=code, param=param)
    found = row.validation or {}
    if row.status == "error":
        raise ApiError(400, f"{row.id} is not valid: {row.status_details}", code=code, param=param)
    if row.status != "processed":
        raise ApiError(
            400, f"{row.id} is still being checked. Wait until its status is 'processed'.", code=code, param=param
        )
    if found.get("method") != method:
        held = found.get("method")
        message = f"{row.id} holds rows for method '{held}', and this job's method is '{method}'. Set method.type to "
        message += f"'{held}', or give a file with rows for '{method}'."
        raise ApiError(400, message, code=code, param=param)
    if found.get("num_rows", 0) < least:
        raise ApiError(
            400,
            f"{'Training' if least > 1 else 'Validation'} file has {found.get('num_rows')} example(s), but must have "
            f"at least {least} examples.",
            code="invalid_n_examples",
            param=param,
        )
    return row


def _check_number(session: Session, context: Context, caller: Principal, now: float) -> None:
    """Refuse more jobs than the project may have at once, or may have screened in a day.

    What screening says of rows is a detailed answer to whoever tunes an attack (docs/antibody-posterior.md).
    """
    limits = context.settings.limits
    for whose, its_own, most in (
        ("project", Job.project_id == caller.project_id, limits.active_jobs),
        ("organisation", Job.organization_id == caller.organization_id, limits.organization_active_jobs),
    ):
        active = select(func.count()).where(its_own, Job.status.in_(ACTIVE))
        if most and (session.scalar(active) or 0) >= most:
            raise ApiError(
                429,
                f"The {whose} has {most} jobs that have not ended, and may have no more. Wait for one, or cancel one.",
                code="job_limit_exceeded",
                headers={"x-should-retry": "false"},
            )
    most = context.settings.limits.screenings_per_day
    newest = select(Job.created_at).where(Job.project_id == caller.project_id).order_by(Job.seq.desc())
    if (session.scalar(newest.offset(most - 1).limit(1)) or 0.0) > now - 86400:
        raise ApiError(
            429,
            f"The project has had {most} uploads screened in 24 hours, and may have no more. Try again tomorrow.",
            code="screening_limit_exceeded",
            headers={"x-should-retry": "false"},
        )


def _defence(context: Context, body: JobCreate, method: str) -> dict[str, Any]:
    policy = context.settings.defence
    if body.defence is not None:
        name, options = body.defence.name, body.defence.options
    else:
        # The operator's options weigh the rows of supervised training; a choice among pairs has none.
        name, options = policy.name, {} if method == "dpo" else dict(policy.options)
    allowed = policy.allowed and (*policy.allowed, policy.name)
    context.defences.check(name, options, method=method, allowed=allowed)
    return {"name": name, "options": options}


def _gate(context: Context, choice: GateChoice | None) -> dict[str, Any]:
    """The operator's thresholds, or stricter ones that the customer asks for."""
    policy = asdict(context.settings.gate)
    thresholds = {
        name: policy[name] for name in ("max_harmful_score", "max_over_refusal_increase", "min_finetune_accuracy")
    }
    for name, value in ({} if choice is None else choice.model_dump()).items():
        if value is None:
            continue
        limit = thresholds[name]
        laxer = limit is not None and (value < limit if name.startswith("min") else value > limit)
        if laxer:
            raise ApiError(
                400,
                f"gate.{name} is {value}: the operator's is {limit}, and yours can only be stricter.",
                code="invalid_value",
                param=f"gate.{name}",
            )
        thresholds[name] = value
    return thresholds


def own_job(session: Session, caller: Principal, job_id: str, *, lock: bool = False) -> Job:
    """A job of the caller's project.

    Raises:
        ApiError: 404: there is none, or it is another's.
    """
    query = select(Job).where(Job.id == job_id, Job.project_id == caller.project_id)
    row = session.scalars(query.with_for_update() if lock else query).first()
    if row is None:
        raise no_job(job_id)
    return row


def no_job(job_id: str) -> ApiError:
    """The answer for the id of a job that does not exist, or is another tenant's."""
    return ApiError(404, f"No such fine-tuning job: {job_id[:64]!r}.", code="fine_tune_not_found", param=None)
