"""Every defence in a plain loop, on a sharded model and on a whole one: what sharding must not change.

accelerate does not shard on a CPU. Its function that shards a model does, and so does a Trainer that is told to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import yaml
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from accelerate import FullyShardedDataParallelPlugin
from antibody_llm.data.roles import MAIN_ROLE, Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.likelihood.microbatch import StepBatch
from antibody_llm.likelihood.ranks import alone
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.layout import decoder_layers
from antibody_llm.primitives.shards import local, shard_like, whole
from antibody_llm.training.batches import Grid, RoleStream, rows_of_step
from antibody_llm.training.sharded_state import parts_of, read_parts, write_parts
from antibody_llm.training.step import Clock, StepContext
from tests.defences.cases import ACTIVE
from tests.tinylm import random_refusals, tiny_llama
from tests.training.helpers import ROWS, made_anchors, prepared

SIZE, NUM_STEPS, RATE, LONGEST, SEED = 4, 2, 0.1, 0.5, 3
CONFIGURATION = Path(__file__).parents[2] / "examples" / "accelerate" / "fsdp2.yaml"
Case = tuple[Stage, str, str]
"""Stage, name, and how: "full", "lora", "checkpointing" (full, with gradient checkpointing), "bf16" (LoRA on a base in
bf16, with passes in bf16) or "tied" (full, with one matrix for embeddings and head)."""


def plugin() -> FullyShardedDataParallelPlugin:
    """What ``accelerate launch`` makes of the configuration that docs/scale.md gives."""
    settings = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["fsdp_config"]
    given = {name.removeprefix("fsdp_"): value for name, value in settings.items()}
    given |= {"fsdp_version": given.pop("version"), "cpu_offload": given.pop("offload_params")}
    given["auto_wrap_policy"] = given["auto_wrap_policy"].lower()
    return FullyShardedDataParallelPlugin(**given)


def shard(model: nn.Module, *, half: bool = False) -> nn.Module:
    """The model as ``accelerate launch`` with FSDP2 would shard it: embeddings, layers, tail and root are units."""
    given = plugin()
    if half:
        given.set_mixed_precision("bf16")
        given.mixed_precision_policy = replace(given.mixed_precision_policy, reduce_dtype=torch.float32)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=given), mixed_precision="no", is_main_process=False, torch_device_mesh=None
    )
    sharded = fsdp2_prepare_model(accelerator, model)
    assert all(isinstance(layer, FSDPModule) for layer in decoder_layers(sharded))
    return sharded


@contextmanager
def sharding_trainers() -> Iterator[None]:
    """Inside, a Trainer shards its model on CPUs too, where accelerate would fall back to DDP."""
    make = Trainer.create_accelerator_and_postprocess

    def make_sharding(self: Trainer) -> None:
        make(self)
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = plugin()
        self.is_fsdp_enabled = True

    with patch.object(Trainer, "create_accelerator_and_postprocess", make_sharding):
        yield


def model_of(kind: str) -> nn.Module:
    model = tiny_llama(tie_word_embeddings=kind == "tied").to(torch.bfloat16 if kind == "bf16" else torch.float32)
    if kind == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return add_lora(model, r=4, targets=["q_proj", "v_proj"], seed=0) if kind in ("lora", "bf16") else model


class Separately(StepContext):
    """The passes of a sharded model, which computes no prompt for two completions: in bf16 they round to other numbers,
    2 % of a gradient's norm apart and as far from float32 (test_step.py)."""

    def _shares_prompts(self, batches: Sequence[StepBatch]) -> bool:
        return False


class Loop:
    """A defence stepped by an optimiser; on one process (``rank`` None) in the passes that all ranks make together."""

    def __init__(
        self,
        case: Case,
        model: nn.Module,
        *,
        num_ranks: int,
        rank: int | None,
        optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    ) -> None:
        stage, name, kind = case
        self.defence = make_defence(stage, name, ACTIVE[stage, name])
        self.main, self.rows = MAIN_ROLE[stage], prepared(self.defence, ROWS)
        self.grid = Grid(SIZE, num_ranks) if rank is None else Grid(SIZE, 1, num_ranks, rank)
        before = tiny_llama(seed=9)
        self.clock = Clock(max_steps=NUM_STEPS, steps_per_epoch=1, learning_rate=RATE)
        self.context = (Separately if kind == "bf16" else StepContext)(
            model,
            rows=self.rows,
            refusals=random_refusals(),
            rank=rank or 0,
            batch_size=SIZE,
            base=before if self.defence.needs_base else None,
            anchors=made_anchors(model, before, rank=rank or 0) if self.defence.needs_anchors else None,
            clock=self.clock,
            seed=SEED,
            autocast=partial(torch.autocast, "cpu", torch.bfloat16) if kind == "bf16" else nullcontext,
        )
        self.optimiser = optimiser(self.context.parameters, lr=RATE)
        per_step, size = self.defence.rows_per_step, self.grid.step_size
        self.streams = {
            role: RoleStream(role, self.rows[role], self.grid, SEED, per_step(role, size))
            for role in self.defence.batches
        }

    def start(self) -> None:
        self.defence.check(self.context)
        self.defence.start(self.context)

    def step(self, number: int) -> torch.Tensor:
        """The gradient of a step, whole and as one vector; the optimiser has moved the weights along it, clipped."""
        self.clock.step = number
        self.context.model.train()
        result = self.defence.step(self.context, self._batches(number))
        for index, (p, g) in enumerate(zip(self.context.parameters, result.gradients, strict=True)):
            p.grad = None if index in result.frozen else g.clone()
        nn.utils.clip_grad_norm_(self.context.parameters, LONGEST)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.defence.after_update(self.context)
        return flat(result.gradients)

    def _batches(self, number: int) -> Mapping[str, StepBatch]:
        rows = self.rows[self.main]
        indices = rows_of_step(len(rows), self.grid, SEED, number)
        main = StepBatch.of([rows[i] for i in indices])
        cuts = RoleStream("main", main.micro_batches[0].rows, self.grid, SEED, len(indices)).at(0)
        return {self.main: cuts} | {role: stream.at(number) for role, stream in self.streams.items()}

    def weights(self) -> torch.Tensor:
        return flat(self.context.parameters)

    @torch.no_grad()
    def set_weights(self, values: torch.Tensor) -> None:
        parts = values.to(torch.float32).split([p.numel() for p in self.context.parameters])
        for p, part in zip(self.context.parameters, parts, strict=True):
            p.copy_(shard_like(part.view(p.shape), p))


def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([whole(t.detach()).double().flatten() for t in tensors])


def differences(cases: Sequence[Case]) -> dict[str, list[float]]:
    """|a - b| / |b| for each case: a with the model sharded over all ranks, b on one process from the same weights.

    The first numbers are of each step's gradient, the last is of the weights after ``finish``.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    found = {}
    for number, case in enumerate(cases):
        model = shard(model_of(case[2]), half=case[2] == "bf16")
        loop = Loop(case, model, num_ranks=num_ranks, rank=rank)
        assert loop.context.sharded
        loop.start()
        before, gradients = [], []
        for step in range(NUM_STEPS):
            before.append(loop.weights())
            gradients.append(loop.step(step))
        loop.defence.finish(loop.context)
        ends = loop.weights()
        if number % num_ranks == rank:  # the whole models are shared out among the ranks
            found[" ".join(case)] = _beside_one_process(case, before, gradients, ends, num_ranks)
    parts: list[dict] = [{} for _ in range(num_ranks)]
    dist.all_gather_object(parts, found)
    return {name: numbers for part in parts for name, numbers in part.items()}


def _beside_one_process(
    case: Case,
    before: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    ends: torch.Tensor,
    num_ranks: int,
) -> list[float]:
    with alone():
        plain = Loop(case, model_of(case[2]), num_ranks=num_ranks, rank=None)
        plain.start()
        numbers = []
        for step, (weights, gradient) in enumerate(zip(before, gradients, strict=True)):
            plain.set_weights(weights)
            theirs = plain.step(step)
            numbers.append(float((gradient - theirs).norm() / theirs.norm()))
        plain.defence.finish(plain.context)
    return [*numbers, float((ends - plain.weights()).norm() / ends.norm())]


def resumed(case: Case, folder: Path) -> bool:
    """Whether a run that was saved after a step and read into new objects ends with the bits of an undisturbed one."""

    def new() -> Loop:
        model = shard(model_of(case[2]))
        return Loop(case, model, num_ranks=dist.get_world_size(), rank=dist.get_rank(), optimiser=torch.optim.AdamW)

    whole_run, again = new(), new()
    whole_run.start()
    whole_run.step(0)
    save(whole_run, folder)
    again.defence.check(again.context)
    load(again, folder)
    for loop in (whole_run, again):
        loop.step(1)
        loop.defence.finish(loop.context)
    same = all(
        torch.equal(local(a), local(b))
        for a, b in zip(*(x.context.parameters for x in (whole_run, again)), strict=True)
    )
    flags = [False] * dist.get_world_size()
    dist.all_gather_object(flags, same)
    return all(flags)


def save(loop: Loop, folder: Path) -> None:
    """The model, the optimiser and the defence, each rank its parts."""
    model, optimiser = get_state_dict(loop.context.model, loop.optimiser)
    dcp.save({"model": model, "optimiser": optimiser}, checkpoint_id=folder / "trainer")
    state = loop.defence.state()
    write_parts(folder, state)
    if dist.get_rank() == 0:
        torch.save(
            {name: tensor for name, tensor in state.items() if name not in parts_of(state)}, folder / "defence.pt"
        )
    dist.barrier()


def load(loop: Loop, folder: Path) -> None:
    model, optimiser = get_state_dict(loop.context.model, loop.optimiser)
    dcp.load({"model": model, "optimiser": optimiser}, checkpoint_id=folder / "trainer")
    set_state_dict(loop.context.model, loop.optimiser, model_state_dict=model, optim_state_dict=optimiser)
    loop.defence.load_state(torch.load(folder / "defence.pt") | read_parts(folder, loop.context.parameters[0]))


def held(case: Case) -> dict[str, float]:
    """Bytes that this rank holds after a step, as a share of what one process holds."""
    shares = {}
    for sharded in (True, False):
        model = model_of(case[2])
        ranks = dist.get_world_size() if sharded else 1
        with nullcontext() if sharded else alone():
            rank = dist.get_rank() if sharded else None
            loop = Loop(
                case, shard(model) if sharded else model, num_ranks=ranks, rank=rank, optimiser=torch.optim.AdamW
            )
            loop.start()
            result = loop.defence.step(loop.context, loop._batches(0))
            loop.step(0)
        of = {
            "parameters": list(loop.context.model.parameters()),
            "gradients": result.gradients,
            "optimiser": [t for state in loop.optimiser.state.values() for t in state.values()],
            "defence": list(loop.defence.state().values()),
        }
        for name, tensors in of.items():
            size = sum(local(t).numel() * t.element_size() for t in tensors)
            shares[name] = size if sharded else shares[name] / size if size else 0.0
    return shares
