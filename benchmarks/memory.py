"""What a step needs of memory: a model of it, beside measured peaks.

    python benchmarks/memory.py --output benchmarks/results/memory.json

The model (``expected``) is arithmetic over shapes of Llama's kind: docs/scale.md explains its terms. It is compared

- with the peak of a step on a CPU in float32: the bytes of all tensors that live at once, counted at every operation;
- with the peaks of one H100 in bf16 and float32 (benchmarks/results/gpu_check.json), LoRA, 1 and 7 billion weights.

The result also has what devices need for Llama 3's shapes, which docs/scale.md shows.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tinylm import random_refusals, tiny_llama

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.likelihood.microbatch import StepBatch
from antibody_llm.models.adapters import add_lora
from antibody_llm.training.step import StepContext

RESULTS = Path(__file__).parent / "results"
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def of_layer(self) -> int:
        """Weights of a decoder layer."""
        return self.width * (2 * self.width + 2 * self.kv_width + 3 * self.mlp + 2)

    @property
    def kv_width(self) -> int:
        """Features of the keys."""
        return self.width * self.kv_heads // self.heads

    @property
    def weights(self) -> int:
        """All weights."""
        return self.layers * self.of_layer + self.width + self.vocabulary * self.width * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter on queries, keys and values."""
        return self.layers * rank * (3 * self.width + self.width + 2 * self.kv_width)


@dataclass(frozen=True)
class Step:
    """How a model is trained.

    Attributes:
        shape: The model.
        rows: Rows of a forward pass.
        length: Tokens of each.
        completion: Those of them that are trained.
        lora: Rank of the adapter; 0 trains all weights.
        half: Passes in bf16; with an adapter the frozen weights are too.
        checkpointing: Whether gradient checkpointing is on.
        gradients: Gradients that a step holds at once, the update included: one more than "extra" of the catalogue.
        copies: Further copies of the trained weights.
        ranks: Ranks that share the weights out (FSDP2); 1 for one device or DDP.
        base_bytes: Bytes of a frozen weight of a layer; by default those of a number of the passes.
        probabilities: Whether attention keeps them for the backward pass, as on a GPU without a fused kernel (float32
            with grouped keys).
    """

    shape: Shape
    rows: int
    length: int
    completion: int
    lora: int = 0
    half: bool = False
    checkpointing: bool = False
    gradients: int = 1
    copies: int = 0
    ranks: int = 1
    base_bytes: float | None = None
    probabilities: bool = False


def expected(step: Step) -> dict[str, float]:
    """Bytes of a rank at the peak of a step, by what they are for."""
    shape, trained = step.shape, step.shape.adapter(step.lora) if step.lora else step.shape.weights
    number = 2 if step.half else 4  # bytes
    frozen = 0.0
    if step.lora:  # 4 bits are for the layers; embeddings and head stay as they are
        layers = shape.layers * shape.of_layer
        frozen = layers * (step.base_bytes or number) + (shape.weights - layers) * number
    gradient = 4 * trained / step.ranks
    tokens = step.rows * step.length
    layer = tokens * of_token(step) * number
    kept = tokens * shape.width * number * shape.layers if step.checkpointing else shape.layers * layer
    head = step.rows * step.completion * shape.vocabulary * LOGIT
    # Within a layer's backward pass its gradients live too; with checkpointing so do the numbers that it makes again.
    inside = tokens * (3 * shape.mlp + 2 * shape.width) * number
    within = inside + (layer if step.checkpointing else 0)
    # Activations are freed while the gradient grows: the largest is at the head, in the last layer or in the first.
    before = gradient - 4 * (trained / shape.layers if step.lora else shape.of_layer) / step.ranks
    passing = max(kept + head, kept + within, before + layer + inside)
    return {
        "weights": frozen / step.ranks + gradient,
        "optimiser": 2 * gradient,
        "held": gradient * (step.gradients - 1 + step.copies),
        "pass": passing,
        "gathered": _gathered(step, number),
    }


def _gathered(step: Step, number: int) -> float:
    """A layer and the next one, the larger of embeddings and head, and the gradient of a layer before it is summed."""
    if step.ranks == 1:
        return 0.0
    shape = step.shape
    return number * (2 * shape.of_layer + shape.vocabulary * shape.width + (0 if step.lora else shape.of_layer))


LOGIT = 12
"""Bytes of a logit at the peak: its logarithm, and two gradients, in float32."""


def of_token(step: Step) -> float:
    """Numbers that a layer keeps of a token for its backward pass, in the type of the passes."""
    shape = step.shape
    attention = 2 * shape.width + 2 * shape.kv_width + (shape.heads * step.length if step.probabilities else 0)
    norms = 4 * shape.width if step.half else 2 * shape.width  # their input is kept in float32
    if step.lora:  # the input of a frozen matrix is not kept
        return norms + shape.width + attention + 3 * shape.mlp
    return norms + 4 * shape.width + attention + 4 * shape.mlp


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still live, at every operation."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._count, out)
        return out

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def measured(step: Step, stage: Stage, name: str, options: dict[str, Any]) -> int:
    """Bytes above the model at the peak of a defence's step on this CPU, gradients included."""
    shape = step.shape
    model = tiny_llama(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, max_position_embeddings=step.length,
    )  # fmt: skip
    if step.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if step.lora:
        model = add_lora(model, r=step.lora, seed=0)
    model.train()
    start = step.length - step.completion
    rows = [TokenizedRow(i, (3,) * step.length, ((start, step.length),), Template.TEXT) for i in range(step.rows)]
    defence = make_defence(stage, name, options)
    roles = ("user", "alignment", "harmful")
    context = StepContext(model, rows=dict.fromkeys(roles, rows), refusals=random_refusals(), batch_size=step.rows)
    defence.start(context)
    with LiveBytes(model) as live:
        defence.step(context, {role: StepBatch.of(rows) for role in roles})
    return live.peak


SMALL = Shape(layers=4, width=96, mlp=256, heads=4, kv_heads=2, vocabulary=2048)
WIDE = Shape(layers=2, width=256, mlp=704, heads=8, kv_heads=8, vocabulary=512)
Cell = tuple[str, Step, Stage, str, dict[str, Any]]


def cells() -> list[Cell]:
    """What is measured here: two shapes, adapters and all weights, and defences that hold gradients and copies."""
    found: list[Cell] = []
    for name, shape, rows, length in (("small", SMALL, 8, 96), ("wide", WIDE, 2, 160)):
        for lora in (0, 8):
            for checkpointing in (False, True):
                step = Step(shape, rows, length, length // 2, lora=lora, checkpointing=checkpointing)
                found.append((name, step, Stage.FINETUNING, "sft", {}))
            attacked = replace(step, checkpointing=False, gradients=5, copies=1)
            found.append((name, attacked, Stage.ALIGNMENT, "antibody", {}))
    return found


def on_the_gpu() -> list[dict[str, Any]]:
    """The model beside the peaks of benchmarks/results/gpu_check.json."""
    one = Shape(layers=16, width=2048, mlp=8192, heads=32, kv_heads=8, vocabulary=128256, tied=True)
    seven = Shape(layers=32, width=4096, mlp=11008, heads=32, kv_heads=32, vocabulary=32000)
    usual = {"rows": 8, "length": 512, "completion": 256, "lora": 32}
    steps = {
        "1B": Step(one, **usual, half=True),
        "1B fp32": Step(one, **usual, probabilities=True),
        "7B": Step(seven, **usual, half=True, checkpointing=True),
    }
    peaks = {
        row["name"]: row["peak_gib"]
        for row in json.loads((RESULTS / "gpu_check.json").read_text())["rows"]
        if row["part"] == "cost" and "peak_gib" in row
    }
    return [
        _beside(f"{name}: {what}", replace(step, gradients=gradients, copies=copies), peaks[f"{name}: {what}"] * GIB)
        for name, step in steps.items()
        for what, gradients, copies in (("sft (ours)", 1, 0), ("antibody alignment", 5, 1))
    ]


def _beside(name: str, step: Step, peak: float, left_out: Sequence[str] = ()) -> dict[str, Any]:
    said = sum(size for part, size in expected(step).items() if part not in left_out)
    return {"name": name, "measured_mib": peak / 2**20, "expected_mib": said / 2**20, "ratio": said / peak}


LLAMAS = {
    "1 B": Shape(layers=16, width=2048, mlp=8192, heads=32, kv_heads=8, vocabulary=128256, tied=True),
    "8 B": Shape(layers=32, width=4096, mlp=14336, heads=32, kv_heads=8, vocabulary=128256),
    "70 B": Shape(layers=80, width=8192, mlp=28672, heads=64, kv_heads=8, vocabulary=128256),
}
WAYS: dict[str, dict[str, Any]] = {
    "adapter, base in 4 bits": {"lora": 32, "base_bytes": 0.53},
    "adapter, base in bf16": {"lora": 32},
    "all weights": {},
}
RANKS = (1, 8, 16)


def fitting() -> list[dict[str, Any]]:
    """GiB of a device for Llama 3's shapes: 4 rows of 1024 tokens, half of them trained, bf16, checkpointing."""
    found = []
    for model, shape in LLAMAS.items():
        for way, settings in WAYS.items():
            step = Step(shape, rows=4, length=1024, completion=512, half=True, checkpointing=True, **settings)
            for ranks in RANKS[:1] if "base_bytes" in settings else RANKS:
                plain = replace(step, ranks=ranks)
                steps = {"sft": plain, "antibody alignment": replace(plain, gradients=5, copies=1)}
                gib = {name: round(sum(expected(each).values()) / GIB, 1) for name, each in steps.items()}
                found.append({"model": model, "way": way, "ranks": ranks, **gib})
    return found


def main() -> None:
    """Measure and compare, or show what fits where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    here = []
    for shape, step, stage, defence, options in cells():
        trained = "adapter" if step.lora else "all weights"
        name = f"{shape}, {trained}, {stage} {defence}" + (", checkpointing" if step.checkpointing else "")
        peak = measured(step, stage, defence, options)
        here.append(_beside(name, step, peak, left_out=("weights", "optimiser")))
    text = json.dumps({"cpu": here, "gpu": on_the_gpu(), "fits": fitting()}, indent=1)
    print(text) if given.output is None else given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
