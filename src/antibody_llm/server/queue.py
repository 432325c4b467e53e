"""Jobs as a queue: a worker claims one for a while, renews its claim, and writes under the token that it was given.

Workers are processes that may be anywhere and may die at any moment. All they need is this class, ``Blobs`` and the
URLs of both. A claim ends by itself when it is not renewed; whoever claims the job next gets a higher token, and from
then on every write under the old one raises ``LeaseLost``. So a worker that was only slow can do no harm:

    claimed = queue.claim("worker-1")                  # None: nothing to do
    if claimed.job.status == "validating_files":       # screen the upload
        queue.screened(claimed, safety={"screening": {...}})    # the job is queued, and the claim is over
    else:                                              # "running": train, then the gate
        orders = queue.renew(claimed)                  # every few seconds, from a thread; orders.pause: stop soon
        queue.event(claimed, "Step 10/100: training loss=0.45", kind="metrics", data={...}, key="step-10")
        queue.checkpoint(claimed, step=88, metrics={...}, adapter=prefix)
        queue.release(claimed)                         # after a checkpoint, where orders.pause was set
        queue.finish(claimed, ...)                     # the gate's verdict comes with it
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from .blobs import Blobs
from .claims import Claimed, LeaseLost, Orders, seen
from .clean import clean
from .database.engine import Database
from .database.tables import Checkpoint, File, Job, Model
from .gate import Outcome
from .ids import new_id
from .lifecycle import CLAIMABLE, Status, end, paused, record_event, release
from .records import OUTCOMES, fail, hold, judged, model_row, result_file, succeed


class Queue:
    """The queue over a database.

    Args:
        database: Shared by server and workers.
        blobs: Where result files go.
        lease: Seconds that a claim lasts without being renewed. Renew about four times in it.
        max_attempts: Times that a job is claimed without reaching a new checkpoint before it fails.
    """

    def __init__(self, database: Database, blobs: Blobs, *, lease: float = 60.0, max_attempts: int = 5) -> None:
        self.database, self.blobs, self.lease, self.max_attempts = database, blobs, lease, max_attempts

    # -- claiming --------------------------------------------------------------------------------------------------

    def claim(self, worker_id: str, *, statuses: Sequence[str] = tuple(CLAIMABLE)) -> Claimed | None:
        """The oldest job that waits, or whose worker fell silent; None where there is none.

        A queued job is ``running`` from now on. A job that was claimed ``max_attempts`` times without a new
        checkpoint is not given out again: it fails.

        Args:
            worker_id: Unique to the process: host, process id and something random.
            statuses: What this worker does, of ``validating_files``, ``queued`` and ``running``.
        """
        while True:
            with self.database.write() as session:
                now = self.database.now(session)
                waits = or_(Job.lease_until.is_(None), Job.lease_until < now)
                # Rows that another worker is claiming at this moment are passed over (PostgreSQL); SQLite lets one
                # writer in at a time.
                oldest = select(Job).where(Job.status.in_(statuses), waits).order_by(Job.seq).limit(1)
                job = session.scalars(oldest.with_for_update(skip_locked=True)).first()
                if job is None:
                    return None
                if job.attempts >= self.max_attempts:
                    self._give_up(session, job, now)
                    continue
                return self._taken(session, job, worker_id, now)

    def _taken(self, session: Session, job: Job, worker_id: str, now: float) -> Claimed:
        release(job)
        job.worker, job.lease_until, job.attempts = worker_id, now + self.lease, job.attempts + 1
        if job.status == Status.QUEUED:
            job.status, job.started_at = Status.RUNNING, job.started_at or now
            record_event(session, job, "Fine-tuning job started", now=now, key="started")
        elif job.status == Status.RUNNING:
            record_event(session, job, "Fine-tuning goes on from its last checkpoint", now=now)
        return Claimed(seen(session, job), job.token, worker_id)

    def _give_up(self, session: Session, job: Job, now: float) -> None:
        message = (
            f"The job's process ended {job.attempts} times without reaching a new checkpoint, for example for want of "
            "memory. Try a smaller batch or shorter rows, or ask the operator."
        )
        record_event(session, job, message, now=now, level="error")
        end(session, job, Status.FAILED, now=now, error={"code": "worker_lost", "message": message, "param": None})

    def renew(self, claimed: Claimed) -> Orders:
        """Keep the claim for another ``lease`` seconds.

        Raises:
            LeaseLost: as every method below: stop at once and write nothing more.
        """
        with self._held(claimed) as (_session, job, now):
            job.lease_until = now + self.lease
            return Orders(job.status == Status.PAUSING, job.lease_until)

    def release(self, claimed: Claimed) -> None:
        """Give the job back: it pauses if its customer wants that now, not a moment ago; else it waits."""
        with self._held(claimed) as (session, job, now):
            job.attempts -= 1
            if job.status == Status.PAUSING:
                paused(session, job, now=now)
            else:
                release(job)

    def expire(self) -> int:
        """Pause the jobs that were to pause when their worker fell silent; returns how many.

        Other silent jobs need nothing: ``claim`` gives them out again.
        """
        with self.database.write() as session:
            now = self.database.now(session)
            silent = select(Job).where(Job.status == Status.PAUSING, Job.lease_until < now)
            jobs = session.scalars(silent.with_for_update(skip_locked=True)).all()
            for job in jobs:
                paused(session, job, now=now)
            return len(jobs)

    @contextmanager
    def _held(self, claimed: Claimed) -> Iterator[tuple[Session, Job, float]]:
        """A transaction on the job, which is locked, at the present time."""
        with self.database.write() as session:
            job = session.scalars(select(Job).where(Job.id == claimed.job.id).with_for_update()).first()
            if job is None or job.token != claimed.token:
                why = "it is gone" if job is None else f"it is {job.status}, held by {job.worker or 'nobody'}"
                raise LeaseLost(f"{claimed.job.id} is no longer {claimed.worker_id}'s: {why}.")
            yield session, job, self.database.now(session)

    # -- what a worker reports -------------------------------------------------------------------------------------

    def event(
        self,
        claimed: Claimed,
        message: str,
        *,
        level: str = "info",
        kind: str = "message",
        data: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> None:
        """Record what happened, for the customer.

        Args:
            claimed: The job.
            message: One sentence; no text of the upload.
            level: ``info``, ``warn`` or ``error``.
            kind: ``message``, ``metrics`` (with ``data``: step, train_loss, ...) or ``moderation_checks``.
            data: Values that programs read.
            key: What the event is called again where a resumed job repeats it, such as ``step-10``: it then stays one.
        """
        with self._held(claimed) as (session, job, now):
            record_event(session, job, message, now=now, level=level, kind=kind, data=data, key=key)

    def resolved(
        self,
        claimed: Claimed,
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        safety: Mapping[str, Any] | None = None,
        private: Mapping[str, Any] | None = None,
        trained_tokens: int | None = None,
        estimated_finish: float | None = None,
    ) -> None:
        """Update what the job's object shows. Mappings are merged into what is there, key by key.

        Args:
            claimed: The job.
            hyperparameters: Numbers in place of ``auto``.
            safety: What the customer may see: ``screening``, ``gate``, ``defence``.
            private: What only the operator may see.
            trained_tokens: So far.
            estimated_finish: Seconds since 1970.
        """
        with self._held(claimed) as (_, job, _now):
            job.hyperparameters = {**job.hyperparameters, **clean(dict(hyperparameters or {}))}
            job.safety = {**job.safety, **clean(dict(safety or {}))}
            job.private = {**job.private, **clean(dict(private or {}))}
            job.trained_tokens = trained_tokens if trained_tokens is not None else job.trained_tokens
            job.estimated_finish = estimated_finish if estimated_finish is not None else job.estimated_finish

    def screened(
        self, claimed: Claimed, *, safety: Mapping[str, Any] | None = None, private: Mapping[str, Any] | None = None
    ) -> None:
        """The files are valid and screened: the job is queued, and this claim is over.

        Where they are not, call ``finish`` with ``status="failed"`` instead.
        """
        with self._held(claimed) as (session, job, now):
            job.safety = {**job.safety, **clean(dict(safety or {}))}
            job.private = {**job.private, **clean(dict(private or {}))}
            job.status, job.validated_at, job.attempts = Status.QUEUED, now, 0
            release(job)
            record_event(session, job, "Files validated, moving job to queued state", now=now, key="validated")

    def checkpoint(self, claimed: Claimed, *, step: int, metrics: Mapping[str, Any], adapter: str) -> str:
        """Record a checkpoint whose adapter is among the blobs, and start counting attempts again.

        Its model is there too, unreleased: nobody can ask it before ``judged`` or ``finish`` says so. A step that is
        reported again keeps its first row.

        Args:
            claimed: The job.
            step: The optimiser's step.
            metrics: Metrics by the API's names: train_loss, train_mean_token_accuracy, valid_loss, ...
            adapter: Prefix of its blobs, from ``Blobs.store_folder``.

        Returns:
            Name of the checkpoint's model.
        """
        name = claimed.job.model_name(step)
        with self._held(claimed) as (session, job, now):
            job.attempts = 0
            if session.scalar(select(Checkpoint.seq).where(Checkpoint.job_id == job.id, Checkpoint.step == step)):
                return name
            session.add(
                Checkpoint(
                    id=new_id("ftckpt_"),
                    job_id=job.id,
                    created_at=now,
                    step=step,
                    model=name,
                    metrics=clean({"step": step, **metrics}),
                )
            )
            session.add(model_row(job, name, adapter, now, step=step))
            record_event(session, job, f"Checkpoint created at step {step}", now=now, key=f"checkpoint-{step}")
        return name

    def judged(
        self, claimed: Claimed, model: str, *, gate: Mapping[str, Any], released: bool, held: bool = False
    ) -> None:
        """Record the gate's verdict on a checkpoint's model, and audit it; see ``records.judged``.

        Args:
            claimed: The job.
            model: The name that ``checkpoint`` returned.
            gate: The gate's table: measures, intervals, thresholds.
            released: Whether customers may use it.
            held: Whether it passed and waits for an operator; it is then not released.
        """
        with self._held(claimed) as (session, job, now):
            row = session.scalars(select(Model).where(Model.name == model, Model.job_id == job.id)).one()
            outcome = Outcome.HELD if held else Outcome.RELEASED if released else Outcome.REFUSED
            judged(session, claimed, row, outcome, gate, now)

    def finish(
        self,
        claimed: Claimed,
        status: str,
        *,
        error: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        gate: Mapping[str, Any] | None = None,
        safety: Mapping[str, Any] | None = None,
        private: Mapping[str, Any] | None = None,
        trained_tokens: int | None = None,
        result_files: Mapping[str, bytes] | None = None,
    ) -> str | None:
        """End the job.

        Args:
            claimed: The job.
            status: ``succeeded``: the gate has released the model. ``held``: it has passed the gate, and an operator
                has the last word. ``failed``: anything else, a model that the gate refused included.
            error: ``{"code", "message", "param"}`` where it failed; codes: ``invalid_training_file``,
                ``safety_gate_failed``, ``screening_refused``, ...
            adapter: Prefix of the result's blobs. With it a model row is kept, released only where the job succeeded;
                an operator can release a refused one later.
            gate: The gate's table of that model.
            safety: Merged into what the customer sees.
            private: Merged into what the operator sees.
            trained_tokens: Tokens trained on in total.
            result_files: Name to content, such as ``step_metrics.csv``; they become files of the customer.

        Returns:
            Name of the model, where there is one.
        """
        # Blobs first: rows never point at nothing. Where the rows are refused, the blobs are swept up later.
        stored = [(name, content, self._stored(content)) for name, content in (result_files or {}).items()]
        with self._held(claimed) as (session, job, now):
            job.safety = {**job.safety, **clean(dict(safety or {}))}
            job.private = {**job.private, **clean(dict(private or {}))}
            job.trained_tokens = trained_tokens if trained_tokens is not None else job.trained_tokens
            job.result_files = [result_file(session, job, *each, now) for each in stored]
            name = claimed.job.model_name() if adapter is not None else None
            if name is not None and adapter is not None:
                session.add(row := model_row(job, name, adapter, now))
                judged(session, claimed, row, OUTCOMES.get(Status(status), Outcome.REFUSED), gate, now)
            if status == Status.HELD:
                hold(session, job, now=now)
            elif status == Status.SUCCEEDED:
                succeed(session, job, name, now=now)
            else:
                fail(session, job, name, error or {}, now=now)
            return name

    def _stored(self, content: bytes) -> str:
        key = self.blobs.new_key("files")
        with self.blobs.writing(key) as file:
            file.write(content)
        return key

    # -- what a worker reads ---------------------------------------------------------------------------------------

    def file(self, file_id: str) -> File | None:
        """A file's row, deleted or not, detached from the database; ``blobs.open(row.blob)`` has its content."""
        with self.database.read() as session:
            return session.scalars(select(File).where(File.id == file_id)).first()

    def model(self, name: str) -> Model | None:
        """A fine-tuned model's row, released or not, detached from the database."""
        with self.database.read() as session:
            return session.scalars(select(Model).where(Model.name == name)).first()

    def chain(self, claimed: Claimed) -> list[Job]:
        """The jobs that the claimed one continues, nearest first: their uploads are screened together with its own."""
        found: list[Job] = []
        parent = claimed.job.parent
        with self.database.read() as session:
            while parent is not None:
                row = session.scalars(select(Model).where(Model.name == parent)).first()
                job = None if row is None else session.scalars(select(Job).where(Job.id == row.job_id)).first()
                if job is None:
                    break
                found.append(job)
                parent = job.parent
        return found

    def depth(self) -> tuple[dict[str, int], int]:
        """How many jobs are in each state, and how many a worker could claim now."""
        with self.database.read() as session:
            now = self.database.now(session)
            rows = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
            free = or_(Job.lease_until.is_(None), Job.lease_until < now)
            waiting = session.scalar(select(func.count()).where(Job.status.in_(CLAIMABLE), free)) or 0
            return {str(status): int(num) for status, num in rows}, waiting
