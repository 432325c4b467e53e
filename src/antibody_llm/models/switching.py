"""One model in memory and many adapters on it, of which a request switches one on.

The model's own weights are there once. Adapters are loaded when first asked for; the one that was not asked for the
longest makes room for another.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from peft import PeftModel
from transformers import PreTrainedModel

from ..errors import ModelError
from .adapters import adapter_disabled
from .loading import LoadedModel, load_model, with_further_adapter
from .names import resolve

MOST_ADAPTERS = 32


class SwitchedModel:
    """A model, served with or without one of its adapters.

    Args:
        name: A whole model, not an adapter; named as ``load_model`` takes it.
        most: Adapters that are in memory together.

    Raises:
        ModelError: as ``load_model``.
    """

    def __init__(self, name: str, *, most: int = MOST_ADAPTERS) -> None:
        self.plain = load_model(name)
        self.plain.model.eval()
        self.most = most
        self._adapters: OrderedDict[str, tuple[str, LoadedModel]] = OrderedDict()
        self._count = 0

    @property
    def adapters(self) -> tuple[str, ...]:
        """Folders of those in memory, the one asked for last at the end."""
        return tuple(self._adapters)

    def load(self, adapter: str | None) -> LoadedModel:
        """The model as ``on`` will have it, its tokenizer included; without ``on`` another adapter may be on it.

        Raises:
            ModelError: the adapter does not load. The model and the other adapters are as they were.
        """
        if adapter is None:
            return replace(self.plain, model=self._model)
        place = resolve(adapter)
        if place not in self._adapters:
            # Names are not used again: PEFT keeps nothing of an adapter that is gone, and nothing of ours may either.
            key = f"adapter{self._count}"
            self._count += 1
            loaded = with_further_adapter(replace(self.plain, model=self._model), adapter, key=key)
            self._adapters[place] = key, loaded
            if len(self._adapters) > self.most:
                _, (oldest, _) = self._adapters.popitem(last=False)
                loaded.model.delete_adapter(oldest)
        self._adapters.move_to_end(place)
        return self._adapters[place][1]

    @contextmanager
    def on(self, adapter: str | None) -> Iterator[LoadedModel]:
        """Inside, the model with exactly this adapter on, or with none."""
        loaded = self.load(adapter)
        if adapter is None:
            with adapter_disabled(loaded.model) if isinstance(loaded.model, PeftModel) else nullcontext():
                yield loaded
            return
        if not isinstance(loaded.model, PeftModel):
            raise ModelError(f"{adapter}: no adapter.")
        loaded.model.set_adapter(self._adapters[resolve(adapter)][0], inference_mode=True)
        yield loaded

    @property
    def _model(self) -> PreTrainedModel | PeftModel:
        """The model as PEFT holds it; the plain one before there is an adapter."""
        return next(reversed(self._adapters.values()))[1].model if self._adapters else self.plain.model
