"""Run a chat template under limits: it is a program that came with a model, and may not end.

It runs in jinja's sandbox, for ``SECONDS`` and ``BYTES`` at most, and whatever it raises is its answer.
"""

import json
import resource
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ModelError

SECONDS = 5.0
"""One rendering takes a millisecond or less."""
BYTES = 2 * 2**30
"""More memory than the process has when the rendering begins."""
EXPANSION, ALLOWANCE = 20, 1_000_000
"""The most characters of a rendered text: so many for each of its content's, and so many more."""


class TemplateRefusal(Exception):
    """The template does not take these messages; its own reason."""


class Sandbox:
    """The chat template of a tokenizer, which renders one conversation at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.owner = tokenizer.name_or_path
        self._limits = _Limits()

    def rendered(self, chat: Sequence[dict[str, Any]], tools: Any, *, prompt: bool) -> str:
        """The chat as the template writes it.

        Args:
            chat: Messages as transformers takes them.
            tools: Definitions of tools, or None.
            prompt: Whether to add whatever begins an assistant's turn.

        Raises:
            TemplateRefusal: the template raises something.
            ModelError: it takes too long, or writes what no tokenizer takes.
        """
        try:
            with self._limits:
                made = self.tokenizer.apply_chat_template(
                    list(chat), tools=tools, tokenize=False, add_generation_prompt=prompt
                )
        except _OverLimit as over:
            raise ModelError(f"the chat template of {self.owner} {over}. Use another template.") from None
        except MemoryError:
            raise ModelError(
                f"the chat template of {self.owner} takes more than {BYTES >> 30} GiB for one conversation. "
                "Use another template."
            ) from None
        except Exception as error:  # a template can raise whatever an expression can
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TemplateRefusal(reason) from error
        rendered: str = str(made)
        if len(rendered) > ALLOWANCE and len(rendered) > ALLOWANCE + EXPANSION * len(
            json.dumps([chat, tools], ensure_ascii=False)
        ):
            raise ModelError(
                f"the chat template of {self.owner} makes {len(rendered):,} characters of one conversation. "
                "Use another template."
            )
        try:
            rendered.encode("utf-8")
        except UnicodeEncodeError:
            raise ModelError(
                f"the chat template of {self.owner} writes half a surrogate pair, which no tokenizer takes. "
                "Use another template."
            ) from None
        return rendered


class _OverLimit(BaseException):
    """A timer raises this inside the template; it is no ``Exception``, which something in between might catch."""


class _Limits:
    """Stops what runs inside after ``SECONDS`` of computing (in the main thread, which alone has signals) or ``BYTES``.

    A class, and not a generator: it is entered twice for every row of an upload.
    """

    def __init__(self) -> None:
        self._used, self._looked_at = _address_space(), time.monotonic()

    def __enter__(self) -> None:
        if time.monotonic() - self._looked_at > 0.2:
            self.look_again()
        self._soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if self._used is not None:
            wanted = (self._used + BYTES, self._soft, hard)
            resource.setrlimit(resource.RLIMIT_AS, (min(w for w in wanted if w != resource.RLIM_INFINITY), hard))
        self._timed = threading.current_thread() is threading.main_thread()
        if self._timed:
            self._handler = signal.signal(signal.SIGVTALRM, _stop)
            self._timer = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)

    def __exit__(self, *raised: object) -> None:
        if self._timed:
            signal.setitimer(signal.ITIMER_VIRTUAL, *self._timer)
            signal.signal(signal.SIGVTALRM, self._handler)
        if self._used is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self._soft, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def look_again(self) -> None:
        """Measure the process's size again, as its size without the template."""
        self._used, self._looked_at = _address_space(), time.monotonic()


def _stop(signum: int, frame: FrameType | None) -> None:
    raise _OverLimit(f"has not rendered one conversation after {SECONDS:g} seconds")


def _address_space() -> int | None:
    """Bytes of the process's address space; None where the system does not say, and no limit is set."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return None
