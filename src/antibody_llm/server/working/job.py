"""A claimed job: its files, its stages, and what is recorded of it."""

import logging
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..blobs import Blobs
from ..queue import Queue
from ..settings import OfferedModel, ServerSettings
from ..weights import Weights, local_weights
from .executor import Executor
from .held import Held

log = logging.getLogger("antibody.server")

Event = dict[str, Any]
RETRIES = 2
"""How often a stage that died is begun again without a new checkpoint."""
CODES = {
    "DataError": "invalid_training_file",
    "ConfigError": "invalid_hyperparameters",
    "ModelError": "model_error",
    "TrainingError": "training_diverged",
    "EvaluationError": "evaluation_failed",
    "OutputError": "storage_error",
    "OutOfMemory": "out_of_memory",
}
"""``error.code`` by the kind of an error; of another kind: ``internal_error``."""
MESSAGES = {
    "out_of_memory": "The job needs more memory than it may use. Try a smaller batch_size, or shorter rows.",
    "model_error": "The model cannot be used for this job. Ask the operator, whose log says why.",
    "storage_error": "The job's files could not be written. Ask the operator, whose log says why.",
    "internal_error": "The job's process failed. Ask the operator, whose log says why.",
}
"""What a customer reads where the error itself names the server's paths, or says nothing."""


class JobFailed(Exception):
    """The job ends here.

    Args:
        code: The code of the job object's error.
        message: Its message.
        param: Its parameter.
        with_it: Further arguments of ``Queue.finish``.
    """

    def __init__(self, code: str, message: str, param: str | None = None, **with_it: Any) -> None:
        super().__init__(message)
        self.error, self.with_it = {"code": code, "message": message, "param": param}, with_it


class ClaimedWork:
    """What the stages of one claim share.

    Args:
        held: The claim.
        blobs: Files and weights.
        settings: The operator's.
        executor: Where stages run.
        folder: A folder for this claim alone.

    Raises:
        JobFailed: the job's base model is no longer offered.
    """

    def __init__(self, held: Held, blobs: Blobs, settings: ServerSettings, executor: Executor, folder: Path) -> None:
        self.held, self.blobs, self.settings, self.executor, self.folder = held, blobs, settings, executor, folder
        self.queue: Queue = held.queue
        self.claimed, self.job = held.claimed, held.claimed.job
        self.private = dict(self.job.private)
        """A copy of what the database has; ``keep`` changes both."""
        offered = settings.model(self.job.base)
        if offered is None:
            raise JobFailed("model_not_found", f"{self.job.base} is no longer offered.", "model")
        self.offered: OfferedModel = offered
        self.model = offered.path or offered.name
        folder.mkdir(parents=True, exist_ok=True)

    # -- stages ------------------------------------------------------------------------------------------------------

    def run(
        self,
        stage: str,
        arguments: Mapping[str, Any],
        on_event: Callable[[Event], None] | None = None,
        again: Callable[[], None] | None = None,
    ) -> Event:
        """Run a stage to its end, again where its process died, and return its result.

        Args:
            stage: A stage's name, from stages.py.
            arguments: Its settings.
            on_event: Called with what it reports on its way.
            again: Called before it begins again.

        Raises:
            JobFailed: it failed.
            LeaseLost: as ``Held.check``; Paused and GivenBack too.
        """
        memory = self.settings.worker.memory_bytes
        spec = {"stage": stage, "job": self.job.id, "memory_bytes": memory, "settings": dict(arguments)}
        left = RETRIES
        while True:
            self.held.check()
            last: Event = {}
            with self.held.running(self.executor.start(spec, folder=self.folder)) as process:
                for event in process.events():
                    last = event
                    if event["event"] == "checkpoint":
                        left = RETRIES
                    if event["event"] == "notice":
                        self._notice(self.without_places(event["message"]))
                    elif on_event is not None:
                        on_event(event)
                status = process.wait()
            if last.get("event") == "result":
                return last
            self.held.check()
            if last.get("event") == "failed":
                raise self._failure(last)
            if last.get("event") != "stopped":  # else to pause, and the customer has thought better of it
                left = self._counted(stage, status, left)
            if again is not None:
                again()

    def _counted(self, stage: str, status: int, left: int) -> int:
        """How often a stage may still begin again, now that its process has died."""
        log.warning("%s: a process of stage %s ended with status %s: %s", self.job.id, stage, status, self._said())
        if left == 0:
            code = "out_of_memory" if status == -9 else "internal_error"
            raise JobFailed(code, MESSAGES[code])
        return left - 1

    def _notice(self, message: str) -> None:
        """A warning of a stage, once however often it is run."""
        self.event(message, level="warn", key=f"notice-{sha256(message.encode()).hexdigest()[:32]}")

    def _said(self) -> str:
        """The end of what the stages' processes have written to standard error."""
        path = self.folder / "stage.log"
        return path.read_text(encoding="utf-8", errors="replace")[-1000:] if path.is_file() else ""

    def _failure(self, failed: Event) -> JobFailed:
        """The job's end for what a stage reported."""
        code = CODES.get(failed["kind"], "internal_error")
        if code != "invalid_training_file":  # its message may repeat what a row says, which no log is to hold
            told = failed.get("trace") or failed["message"]
            log.warning("%s: %s: %s", self.job.id, failed["kind"], told)
        message = MESSAGES.get(code) or self.without_places(str(failed["message"]))
        if code == "invalid_training_file" and message.startswith("validation file"):
            return JobFailed("invalid_validation_file", message, "validation_file")
        return JobFailed(code, message, "training_file" if code == "invalid_training_file" else None)

    def without_places(self, message: str) -> str:
        """A message in the customer's words, which names no folder of this machine."""
        for path, called in (
            (self.folder / "training.jsonl", "training file"),
            (self.folder / "validation.jsonl", "validation file"),
            (self.folder, "the job's folder"),
            (self.offered.base, f"{self.offered.name} before alignment"),
            (self.offered.path, self.offered.name),
        ):
            if Path(path).is_absolute():
                message = message.replace(str(path), called)
        return message

    # -- what is recorded --------------------------------------------------------------------------------------------

    def event(self, message: str, **how: Any) -> None:
        """An event that the customer sees; see ``Queue.event``."""
        self.queue.event(self.claimed, message, **how)

    def keep(self, **private: Any) -> None:
        """Record something for whoever goes on with the job."""
        self.private |= private
        self.queue.resolved(self.claimed, private=private)

    # -- files -------------------------------------------------------------------------------------------------------

    def blob(self, file_id: str) -> str:
        """The blob of a customer's file.

        Raises:
            JobFailed: its content is gone.
        """
        row = self.queue.file(file_id)
        if row is None or row.purged:
            param = "validation_file" if file_id == self.job.validation_file else "training_file"
            message = f"{file_id} was deleted while the job waited. Upload it again, and create the job again."
            raise JobFailed(f"invalid_{param}", message, param)
        return row.blob

    def start(self) -> Weights:
        """The model that the job goes on from.

        Raises:
            JobFailed: it is gone.
        """
        if self.job.parent is None:
            return Weights(self.model)
        found = local_weights(self.job.parent, self.model, self.queue, self.blobs, self.folder / "parents")
        if found is None:
            raise JobFailed("model_not_found", f"{self.job.parent} was deleted while the job waited.", "model")
        return found

    def loaded_from(self, folder: Path) -> dict[str, str]:
        """The arguments by which a verb loads what the job has trained."""
        if (folder / "config.json").is_file():
            return {"model": str(folder)}
        return {"model": self.start().model, "adapter": str(folder)}

    def fetched(self, file_id: str, name: str) -> Path:
        """A file of the customer as one in the claim's folder."""
        path = self.folder / name
        with path.open("wb") as target:
            for piece in self.blobs.chunks(self.blob(file_id)):
                target.write(piece)
        return path

    def stored(self, path: Path, kind: str) -> str:
        """The key of a new blob with a file's content."""
        key = self.blobs.new_key(kind)
        with path.open("rb") as source, self.blobs.writing(key) as target:
            shutil.copyfileobj(source, target)
        return key

    def tidy(self) -> None:
        """Remove what only going on with the job needed."""
        if prefix := self.private.get("run"):
            self.blobs.delete(prefix)
