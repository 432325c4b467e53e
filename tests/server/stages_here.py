"""Stages without processes: real ones in a thread, and scripted ones."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from antibody_llm.server.stages import run
from antibody_llm.server.verbs import Stop


class Killed(BaseException):
    """The process is no more."""


class ThreadProcess:
    """A stage in a thread of this process; a kill ends it at its next event."""

    def __init__(self, spec, on_event=None):
        self._events, self._dead, self._stop, self._on_event = queue.Queue(), threading.Event(), Stop(), on_event
        self._thread = threading.Thread(target=self._run, args=(spec,), daemon=True)
        self._thread.start()

    def _run(self, spec):
        with suppress(Killed):
            run(spec, self._emit, self._stop)
        self._events.put(None)

    def _emit(self, event, fields):
        if self._dead.is_set():
            raise Killed
        self._events.put({"event": event, **fields})
        if self._on_event is not None:
            self._on_event(self, event, fields)

    def events(self):
        while (event := self._events.get()) is not None and not self._dead.is_set():
            yield event

    def stop(self):
        self._stop.asked = True

    def kill(self):
        self._dead.set()

    def wait(self):
        self._thread.join(30)
        return -9 if self._dead.is_set() else 0


class ThreadExecutor:
    """Runs stages here. ``on_event(process, event, fields)`` is called in the stage's thread."""

    def __init__(self, on_event: Callable | None = None):
        self.on_event = on_event
        self.specs = []

    def start(self, spec, *, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.specs.append(spec)
        return ThreadProcess(spec, self.on_event)


class Script:
    """An executor whose stages report what a function of their settings returns, and train nothing."""

    def __init__(self, **stages):
        self.stages = stages
        self.started = []
        self.killed = False

    def start(self, spec, *, folder):
        self.started.append(spec["stage"])
        folder.mkdir(parents=True, exist_ok=True)
        return ScriptedProcess(self, self.stages[spec["stage"]](spec["settings"]))


class ScriptedProcess:
    def __init__(self, script, events):
        self.script, self._events, self.status = script, events, 0

    def events(self):
        for event in self._events:
            if isinstance(event, int):
                self.status = event
                return
            if callable(event):
                event()
                continue
            if self.script.killed:
                return
            yield event

    def stop(self): ...

    def kill(self):
        self.script.killed = True

    def wait(self):
        return self.status
