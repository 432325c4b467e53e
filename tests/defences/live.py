"""How many tensors of one kind a computation holds at once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Inside, every storage that holds a ``wanted`` tensor is counted for as long as anything keeps it.

    A view counts as what it looks at, and the weights of ``model`` count as nothing.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.wanted = wanted
        self.own = {p.untyped_storage()._cdata for p in model.parameters()}
        self.refs: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def now(self) -> int:
        self.refs = {key: ref for key, ref in self.refs.items() if not ref.expired()}
        return len(self.refs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and self.wanted(value):
                ref = StorageWeakRef(value.untyped_storage())
                if ref.cdata not in self.own:
                    self.refs[ref.cdata] = ref
        self.peak = max(self.peak, self.now())
        return result
