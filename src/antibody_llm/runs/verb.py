"""A verb: a function of its settings, which Python calls with keyword arguments."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from transformers import TrainerCallback

from ..events import Listener, listening
from ..parsing import nearest
from ..settings import check_kinds, fields_of

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
R = TypeVar("R")
S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


LISTEN = inspect.Parameter("listen", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Listener | None)


class Verb(Protocol[P, S_contra, Q, R_co]):
    """``finetune(model, output=..., data=...)``, or ``finetune.with_settings(FinetuneSettings(...))``."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload  # what a verb takes beside its settings cannot be added to P
    def __call__(self, *args: Any, listen: Listener | None, **others: Any) -> R_co: ...

    @overload
    def __call__(self, *args: Any, callbacks: Sequence[TrainerCallback], **others: Any) -> R_co: ...

    @overload
    def with_settings(self, settings: S_contra, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co: ...

    @overload
    def with_settings(self, settings: S_contra, /, *args: Any, listen: Listener | None, **others: Any) -> R_co:
        """Call it with a settings object instead."""
        ...


def verb(settings: Callable[P, S]) -> Callable[[Callable[Concatenate[S, Q], R]], Verb[P, S, Q, R]]:
    """Make a function of ``settings`` callable with the fields of its dataclass as arguments.

    Signature and docstring are made from the dataclass; what the function takes beside its settings comes after them,
    and ``listen``, which hears what happens in it.

    Args:
        settings: The dataclass.
    """
    kind = cast(type, settings)

    def decorate(run: Callable[Concatenate[S, Q], R]) -> Verb[P, S, Q, R]:
        beside = [each for each in inspect.signature(run).parameters.values() if each.name != "settings"]
        names = [each.name for each in beside]

        @wraps(run)
        def with_settings(given: S, /, *, listen: Listener | None = None, **others: Any) -> R:
            check_kinds(kind, vars(given))
            if listen is not None and not callable(listen):
                raise TypeError(f"{run.__name__}() listen is a {type(listen).__name__}: it must be callable.")
            with listening(listen):
                return cast(R, cast(Any, run)(given, **others))

        @wraps(run)
        def call(*args: Any, listen: Listener | None = None, **given: Any) -> R:
            _check_call(run.__name__, made.__signature__, args, given)
            others: dict[str, Any] = {name: given.pop(name) for name in names if name in given}
            check_kinds(kind, made.__signature__.bind_partial(*args, **given).arguments)  # before they are compared
            return with_settings(settings(*args, **given), listen=listen, **others)

        made = cast(Any, call)
        made.__signature__ = _signature(kind, [*beside, LISTEN], inspect.signature(run).return_annotation)
        made.__doc__ = _docstring(kind, inspect.getdoc(run) or "")
        made.with_settings = with_settings
        return cast(Verb[P, S, Q, R], made)

    return decorate


def _check_call(name: str, signature: inspect.Signature, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Raises TypeError, as Python does of a function: the verb is called, not the dataclass beneath it."""
    for keyword in given:
        if keyword not in signature.parameters:
            close = nearest(keyword, signature.parameters)
            raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}{close}")
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None


def _signature(settings: type, beside: list[inspect.Parameter], returns: Any) -> inspect.Signature:
    places = {field.name: field.kw_only for field in dataclasses.fields(settings)}
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY if places[field.name] else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.required else field.default,
            annotation=field.hint,
        )
        for field in fields_of(settings)
    ]
    # What may be given without its name comes first, whether it must be given or not.
    ordered = sorted([*parameters, *beside], key=lambda parameter: parameter.kind)
    return inspect.Signature(ordered, return_annotation=returns)


def _docstring(settings: type, text: str) -> str:
    """The function's docstring with a line for each field in place of the one for ``settings``."""
    lines = (
        textwrap.fill(
            f"{field.name}: {field.text}",
            width=116,
            initial_indent=" " * 4,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        )
        for field in fields_of(settings)
    )
    arguments = "\n".join([*lines, "    listen: Called with every event (``events``); it may ask the run to stop."])
    return re.sub(r"^    settings: .*$", lambda _: arguments, text, flags=re.MULTILINE)
