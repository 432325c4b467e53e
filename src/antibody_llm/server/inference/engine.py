"""Models in memory and the queue in front of them: one thread that decodes, whatever waits for one model together.

Requests for one model and adapter that wait at the same time are decoded as one batch; others wait until it is done.
For many clients at once put vLLM behind the server instead (backends.py).
"""

import logging
import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from secrets import randbits

from ...data.encode import Renderer
from ...errors import AntibodyError, DataError
from ...models.deployment import Deployment
from ...models.layout import context_length
from ...models.loading import LoadedModel
from ...models.names import adapter_base, is_adapter
from ...models.switching import SwitchedModel
from ...runs.evaluate import deployment_of
from .decoding import Reader, Row, decode, row_ends
from .requests import Generation, RequestError

log = logging.getLogger("antibody")

MOST_MODELS = 2
"""Models in memory together; adapters come on top."""
BATCH_ROWS = 16
"""Completions decoded together."""
UNLIMITED = 1024
"""Most tokens of a completion where the request sets no limit: one that never ends keeps others waiting."""
MOST_WAITING = 256
"""Requests that wait; a further one is refused."""


class Overloaded(Exception):
    """Too many requests wait; the client may try again later."""


@dataclass(frozen=True)
class Target:
    """What is to answer: a model and, where there is one, the adapter on it."""

    model: str
    """A packaged name, a folder or a Hub id."""
    adapter: str | None = None

    @staticmethod
    def of(model: str) -> "Target":
        """The target that a folder is, which may hold an adapter or a whole model."""
        return Target(adapter_base(model), model) if is_adapter(model) else Target(model)


@dataclass(frozen=True)
class Choice:
    """A finished completion."""

    text: str
    finish: str
    num_tokens: int


@dataclass(frozen=True)
class Answer:
    """A finished request: completions of its first prompt, then of its second, and so on."""

    choices: tuple[Choice, ...]
    num_prompt_tokens: int


Listener = Callable[[int, str], bool]
"""Called with the number of a completion and a further piece of its text; False ends that completion."""


class Engine:
    """Answers requests, from whatever thread they come.

    Args:
        most_models: Models in memory together.
        batch_rows: Completions decoded together.
        most_waiting: Requests that may wait.
    """

    def __init__(
        self, *, most_models: int = MOST_MODELS, batch_rows: int = BATCH_ROWS, most_waiting: int = MOST_WAITING
    ) -> None:
        self.most_models, self.batch_rows, self.most_waiting = most_models, batch_rows, most_waiting
        self._models: OrderedDict[str, SwitchedModel] = OrderedDict()
        self._waiting: deque[_Asked] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._voices: dict[Target, _Voice] = {}
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def submit(
        self, target: Target, request: Generation, listen: Listener = lambda choice, piece: True
    ) -> "Future[Answer]":
        """Queue a request; the future's result is an ``Answer``.

        It fails with a ``RequestError`` where the client can fix it, an ``AntibodyError`` where the operator can, and
        ``Overloaded`` where too many wait, or the process is about to end.
        """
        asked = _Asked(target, request, listen, Future())
        with self._condition:
            if self._closed or len(self._waiting) >= self.most_waiting:
                asked.future.set_exception(Overloaded())
            else:
                self._waiting.append(asked)
                self._condition.notify()
        return asked.future

    def close(self) -> None:
        """Finish what is being decoded and refuse what waits."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()
        for asked in self._waiting:
            asked.future.set_exception(Overloaded())

    def _serve(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                batch = self._next_batch()
            try:
                self._answer(batch)
            except Exception as error:  # a request's fault must not end the thread that answers all others
                if not isinstance(error, AntibodyError):  # its place, and not its text, which may repeat a prompt
                    log.error("inference failed:\n%s", "".join(traceback.format_tb(error.__traceback__)))
                for asked in batch:
                    if not asked.future.done():
                        asked.future.set_exception(error)

    def _next_batch(self) -> list["_Asked"]:
        """The request that waits the longest, and those for the same target that fit beside it."""
        first = self._waiting[0]
        batch: list[_Asked] = []
        num_rows = 0
        for asked in list(self._waiting):
            if asked.target == first.target and (not batch or num_rows + asked.num_rows <= self.batch_rows):
                batch.append(asked)
                num_rows += asked.num_rows
                self._waiting.remove(asked)
        return batch

    def _answer(self, batch: list["_Asked"]) -> None:
        target = batch[0].target
        with self._model(target.model).on(target.adapter) as loaded:
            voice = self._voice(target, loaded)
            ready = [asked for asked in batch if _prepared(asked, voice)]
            rows = [row for asked in ready for row in asked.rows]
            if rows:
                decode(loaded, rows, voice.reader)
        for asked in ready:
            asked.finish()

    def _voice(self, target: Target, loaded: LoadedModel) -> "_Voice":
        if target not in self._voices:
            context = context_length(loaded.model)
            renderer = Renderer(loaded.tokenizer, max_length=context or 2**31)
            deployment = deployment_of(loaded)
            reader = Reader(loaded.tokenizer, deployment, row_ends(loaded, renderer.stop_ids))
            self._voices[target] = _Voice(renderer, reader, deployment, context)
        return self._voices[target]

    def _model(self, name: str) -> SwitchedModel:
        if name not in self._models:
            while len(self._models) >= self.most_models:
                gone, _ = self._models.popitem(last=False)
                self._voices = {target: voice for target, voice in self._voices.items() if target.model != gone}
            self._models[name] = SwitchedModel(name)
        self._models.move_to_end(name)
        return self._models[name]


@dataclass(frozen=True)
class _Voice:
    """How one target is asked and read."""

    renderer: Renderer
    reader: Reader
    deployment: Deployment
    context: int | None
    """Tokens; None where the model has no limit."""


class _Asked:
    """A request in the queue."""

    def __init__(self, target: Target, request: Generation, listen: Listener, future: "Future[Answer]") -> None:
        self.target, self.request, self.listen, self.future = target, request, listen, future
        self.rows: list[Row] = []
        self.num_prompt_tokens = 0

    @property
    def num_rows(self) -> int:
        return len(self.request.records) * self.request.num_choices

    def make_rows(self, voice: _Voice) -> None:
        """One row for each completion.

        Raises:
            RequestError: a prompt does not fit.
            DataError: the template refuses the messages.
        """
        request = self.request
        for record in request.records:
            prompt = voice.renderer.encode_prompt(voice.deployment.prompt(record))
            self.num_prompt_tokens += len(prompt)
            max_tokens = _room(len(prompt), request.max_tokens, voice.context)
            for _ in range(request.num_choices):
                index = len(self.rows)
                # Mixed with a large odd number, so that (seed 0, row 1) and (seed 1, row 0) are different streams.
                seed = randbits(62) if request.seed is None else request.seed * 1_000_003 + index
                self.rows.append(
                    Row(prompt, request, max_tokens=max_tokens, seed=seed, listen=partial(self.listen, index))
                )

    def finish(self) -> None:
        """Hand over the answer."""
        choices = tuple(Choice(row.text, row.finish or "length", row.num_tokens) for row in self.rows)
        self.future.set_result(Answer(choices, self.num_prompt_tokens))


def _prepared(asked: _Asked, voice: _Voice) -> bool:
    """Make the request's rows; False where it cannot be answered, which its future then says."""
    try:
        asked.make_rows(voice)
    except DataError as error:  # the template refuses the messages
        problem = getattr(error, "problem", None)
        asked.future.set_exception(RequestError(str(problem or error), getattr(problem, "field", None) or None))
    except RequestError as error:
        asked.future.set_exception(error)
    return not asked.future.done()


def _room(num_prompt: int, wanted: int | None, context: int | None) -> int:
    """Most tokens that a completion may have.

    Raises:
        RequestError: prompt and completion do not fit the context.
    """
    if context is None:
        return wanted or UNLIMITED
    room = context - num_prompt
    if room < (wanted or 1):
        asked = f" and {wanted} of the completion" if wanted else ""
        raise RequestError(
            f"This model's maximum context length is {context} tokens, and the request has {num_prompt} of the prompt"
            f"{asked}. Shorten the messages{', or lower max_tokens' if wanted else ''}.",
            "messages",
            "context_length_exceeded",
        )
    return wanted or min(room, UNLIMITED)
