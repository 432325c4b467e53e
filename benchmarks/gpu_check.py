"""Whether the library does on one GPU what it does on a CPU, and what a step costs there; at most nine minutes.

    bash benchmarks/gpu_check.sh OUTPUT                                     on a machine with a GPU
    python benchmarks/gpu_check.py --output OUTPUT --device cpu --small     the script itself, on a machine without

Models are random, or the lab's: nothing is downloaded. Every part has a time box, and what one part cannot do is
reported while the others go on. OUTPUT/gpu_check.json is written again after each measurement, so that a run that is
stopped keeps what it has; a table in Markdown is printed at the end and is OUTPUT/gpu_check.md.

    defences   five SGD steps of a two-layer Llama under every defence of the catalogue, in float32, TF32 and bf16
               autocast, against the same steps in float32 on the CPU; and in float32 killed after step 3 and resumed
    lab        fine-tuning of lab-aligned with and without a defence, judged, beside the same on the CPU
    heads      loss and gradient by each way of reading likelihoods, against the plain one
    qlora      adapters on a base of 4 bits, if bitsandbytes is there
    fsdp       that a trainer under FSDP is refused, and a gradient under ``fully_shard`` on one rank
    cost       a step of random Llamas of 1 and 7 billion weights with LoRA, against ``trl.SFTTrainer``

Tolerances of the first part. The measure is |w - w_cpu| / |w_cpu - w_0| over all weights after the steps, w_cpu in
float32 on the CPU, w_0 before them. How much a defence magnifies rounding is its own affair (one that subtracts two
gradients magnifies it by the ratio of their length to the difference's), so it is measured: e is the measure of bf16
autocast *on the CPU*. The unit roundoff of bf16 is 2^-8, of TF32 2^-11, of float32 2^-24, and to first order the error
is proportional to it:

    bf16      2 e + 2^-8            the same rounding in another order
    TF32      2 e / 8 + 2^-11       only what enters a matrix product is rounded
    float32   32 * 2 e / 2^16 + 2^-20     sums in another order, which bf16 autocast makes in float32 too: the error of
                                    a sum of a thousand terms is about 32 roundings
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import copy
import gc
import importlib.util
import json
import logging
import math
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel
from tests.defences.cases import ACTIVE
from tests.tinylm import random_refusals, random_rows, step, tiny_llama, tiny_tokenizer
from tests.training.helpers import ROWS, made_anchors, prepared, trainer
from tests.training.helpers import config as tiny_config
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
from trl import SFTConfig, SFTTrainer

import step_cost
from antibody_llm.data.records import TokenizedRow
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_defence, make_repair
from antibody_llm.errors import ConfigError
from antibody_llm.likelihood.completion import completion_nll
from antibody_llm.likelihood.microbatch import MicroBatch, StepBatch
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora, trainable_parameters
from antibody_llm.models.saving import save_adapter
from antibody_llm.runs import evaluate, finetune
from antibody_llm.screening.states import states
from antibody_llm.training.defence import Defence
from antibody_llm.training.step import RowTerms, StepContext
from antibody_llm.training.trainer import DefendedTrainer

SECONDS = {"defences": 150.0, "lab": 80.0, "heads": 25.0, "qlora": 45.0, "fsdp": 60.0, "cost": 170.0}
"""Time box of each part, in the order in which they run. What runs in a process of its own starts first."""
TOTAL = 520.0
RESULTS = "gpu_check.json"


# -- what was found ----------------------------------------------------------------------------------------------------


class Skipped(Exception):
    """A measurement that cannot be made here; its text says why."""


@dataclass
class Check:
    """Measurements of all parts, on disk after each."""

    output: Path
    device: torch.device
    small: bool
    file: str = RESULTS
    started: float = field(default_factory=time.monotonic)
    ends: float = math.inf
    """Of the part that is running, on the clock of ``started``."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    def begin(self, part: str) -> None:
        """Open a part's time box."""
        now = time.monotonic()
        self.ends = min(now + SECONDS[part], self.started + TOTAL)
        print(f"== {part}: at {now - self.started:.0f} s, until {self.ends - self.started:.0f} s", flush=True)

    def left(self) -> float:
        """Seconds of the part's time box."""
        return self.ends - time.monotonic()

    def measure(self, part: str, name: str, take: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Take one measurement and store it, whatever becomes of it.

        What ``take`` returns is stored; if its ``passed`` is False, the row's status is "differs".
        """
        row: dict[str, Any] = {"part": part, "name": name}
        before = time.monotonic()
        if self.left() <= 0:
            row |= {"status": "skipped", "why": "no time was left"}
        else:
            try:
                found = dict(take())
                row |= {"status": "passed" if found.pop("passed", True) else "differs", **found}
            except Skipped as reason:
                row |= {"status": "skipped", "why": str(reason)}
            except Exception as error:  # anything: the other measurements go on
                frames = traceback.format_exception(error)[-4:]
                row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"[:600], "trace": "".join(frames)}
                traceback.print_exc()
        row["wall_s"] = round(time.monotonic() - before, 2)
        self.add(row)
        return row

    def add(self, row: dict[str, Any]) -> None:
        """Store a row and say it."""
        self.rows.append(row)
        print(line_of(row), flush=True)
        self.write()

    def write(self) -> None:
        """Whole, or as it was."""
        said = {"environment": environment(self.device), "seconds": time.monotonic() - self.started, "rows": self.rows}
        files = {self.file: json.dumps(said, indent=1, default=str)}
        if self.file == RESULTS:
            files[RESULTS[:-4] + "md"] = table(said)
        for name, text in files.items():
            part = self.output / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(self.output / name)


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions."""
    versions = {}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "huggingface_hub", "datasets"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": where, "python": sys.version.split()[0], "threads": torch.get_num_threads(), **versions}


NOT_SHOWN = {"part", "name", "status", "why", "trace", "wall_s"}


def shown(value: Any) -> str:
    """A number in few digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def line_of(row: Mapping[str, Any]) -> str:
    """A row for people who watch."""
    values = "  ".join(f"{key}={shown(value)}" for key, value in row.items() if key not in NOT_SHOWN)
    return f"{row['status']:8} {row['part']}: {row['name']}  {values}{row.get('why', '')}"


def table(said: Mapping[str, Any]) -> str:
    """All rows as Markdown, one table for each part."""
    lines = ["  ".join(f"{key} {value}" for key, value in said["environment"].items()), ""]
    parts = dict.fromkeys(row["part"] for row in said["rows"])
    for part in parts:
        rows = [row for row in said["rows"] if row["part"] == part]
        keys = list(dict.fromkeys(key for row in rows for key in row if key not in NOT_SHOWN))
        lines += [f"### {part}", "", f"| {' | '.join(['what', 'status', *keys])} |", "| --- " * (len(keys) + 2) + "|"]
        for row in rows:
            cells = [shown(row[key]) if key in row else "" for key in keys]
            why = str(row.get("why", "")).replace("\n", " ").replace("|", "/")
            lines.append("| " + " | ".join([row["name"], f"{row['status']} {why}".strip(), *cells]) + " |")
        lines.append("")
    counts = {s: sum(row["status"] == s for row in said["rows"]) for s in ("passed", "differs", "failed", "skipped")}
    return "\n".join([*lines, ", ".join(f"{num} {status}" for status, num in counts.items()), ""])


def fresh_accelerator() -> None:
    """Forget the device and precision of the last Trainer: accelerate keeps them for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# -- defences ----------------------------------------------------------------------------------------------------------

ROUNDOFF = {"bf16": 2.0**-8, "tf32": 2.0**-11, "fp32": 2.0**-24}
STEPS = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 5}
STEPS |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@dataclass
class Trained:
    """The weights before and after, as one vector on the CPU, and what it took."""

    before: Tensor
    after: Tensor
    seconds: float
    removal: bool = False
    """Whether weights were removed rather than moved."""

    def apart(self, reference: "Trained") -> float:
        """|w - w_ref| / |w_ref - w_0|; of a removal, how many others were removed over how many were."""
        if self.removal:
            return float((self.after != reference.after).sum() / (reference.after != reference.before).sum())
        moved = (reference.after - reference.before).norm().clamp(min=1e-30)
        return float((self.after - reference.after).norm() / moved)


def flat(model: nn.Module) -> Tensor:
    """All weights, float64, on the CPU."""
    return torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()])


def arguments(device: torch.device, mode: str) -> dict[str, Any]:
    """The Trainer's arguments for a device and a precision."""
    chosen: dict[str, Any] = {"use_cpu": device.type == "cpu", "bf16": mode == "bf16"}
    return chosen | ({"tf32": mode == "tf32"} if device.type == "cuda" else {})


def train(stage: Stage, name: str, device: torch.device, mode: str, folder: Path, **changed: Any) -> Trained:
    """Five steps under a defence; ``resume`` names a checkpoint to go on from."""
    resume = changed.pop("resume", None)
    fresh_accelerator()
    defence = make_defence(stage, name, ACTIVE[stage, name])
    run = trainer(folder, defence, **(STEPS | arguments(device, mode) | changed))
    before = flat(run.model)
    start = time.monotonic()
    run.train(resume_from_checkpoint=resume)
    synchronise(device)
    seconds = time.monotonic() - start
    after = flat(run.model)
    if not bool(torch.isfinite(after).all()):
        raise ArithmeticError(f"{mode}: a weight is not finite after the steps")
    return Trained(before, after, seconds)


def repaired(name: str, device: torch.device, mode: str) -> Trained:
    """A post-stage defence applied to a random model."""
    model = tiny_llama().to(device)
    before = flat(model)
    bf16 = mode == "bf16"
    aligned, base = (tiny_llama(seed=seed).to(device) for seed in (1, 2))
    reader = ModelReader(
        model,
        rows=ROWS,
        autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        aligned=aligned,
        base=base,
    )
    start = time.monotonic()
    with matmul_precision(mode):
        make_repair(name, ACTIVE[Stage.POST, name]).repair(reader, seed=0)
    synchronise(device)
    return Trained(before, flat(model), time.monotonic() - start, removal=name == "antidote")


@contextmanager
def matmul_precision(mode: str) -> Iterator[None]:
    """Inside, float32 products are TF32's or float32's."""
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32" if mode == "tf32" else "ieee"
    try:
        yield
    finally:
        torch.backends.fp32_precision = before


def tolerance(mode: str, magnified: float) -> float:
    """The head of this file; ``magnified`` is e."""
    relative = ROUNDOFF[mode] / ROUNDOFF["bf16"]
    if mode == "fp32":
        return 32 * 2 * magnified * relative + 2.0**-20
    return 2 * magnified * relative + ROUNDOFF[mode]


def compare_defence(check: Check, stage: Stage, name: str, folder: Path) -> dict[str, Any]:
    """Distances of each precision from the CPU's float32, and their tolerances."""
    cpu = torch.device("cpu")

    def taken(device: torch.device, mode: str, **changed: Any) -> Trained:
        if stage is Stage.POST:
            return repaired(name, device, mode)
        return train(stage, name, device, mode, folder / f"{stage}-{name}-{device.type}-{mode}", **changed)

    reference = taken(cpu, "fp32")
    found: dict[str, Any] = {"cpu_s": reference.seconds, "passed": True}
    try:
        magnified, refused = taken(cpu, "bf16").apart(reference), ""
    except ConfigError as error:
        magnified, refused = 1.0, str(error)  # of the order of the whole update: that is why it is refused
    found["cpu_bf16"] = "refused" if refused else magnified
    for mode in ("fp32", "tf32", "bf16") if check.cuda else ("fp32", "bf16"):
        saved = {"save_strategy": "steps", "save_steps": 3} if mode == "fp32" else {}
        try:
            run = taken(check.device, mode, **saved)
        except ConfigError as error:
            if not (refused and mode == "bf16"):
                raise
            found[mode] = "refused"
            found["passed"] &= str(error) == refused
            continue
        apart, limit = run.apart(reference), tolerance(mode, magnified)
        if run.removal:  # near ties change places: one or two in as many weights as a roundoff leaves undecided
            limit = 32 * ROUNDOFF[mode]
        found |= {mode: apart, f"{mode}_limit": limit, f"{mode}_s": run.seconds}
        found["passed"] &= apart <= limit
    if stage is not Stage.POST:
        kept = folder / f"{stage}-{name}-{check.device.type}-fp32" / "checkpoint-3"
        again = train(stage, name, check.device, "fp32", folder / "again", resume=kept)
        found["resumed"] = again.apart(reference)
        found["passed"] &= found["resumed"] <= tolerance("fp32", magnified)
    return found


def matrix_product(check: Check, mode: str) -> dict[str, Any]:
    """The error of one product of random matrices, relative to float64: whether a precision is what it is called."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    with matmul_precision(mode), torch.autocast(check.device.type, torch.bfloat16, enabled=mode == "bf16"):
        found = (a.to(check.device) @ b.to(check.device)).double().cpu()
    exact = a.double() @ b.double()
    error = float((found - exact).norm() / exact.norm())
    return {"error": error, "passed": 0.05 * ROUNDOFF[mode] <= error <= 20 * ROUNDOFF[mode]}


def defences(check: Check) -> None:
    """Every defence of the catalogue."""
    for mode in ("fp32", "tf32", "bf16") if check.cuda else ("fp32", "bf16"):
        check.measure("products", mode, lambda mode=mode: matrix_product(check, mode))  # type: ignore[misc]
    keys = list(CATALOGUE)[:: 6 if check.small else 1]
    with tempfile.TemporaryDirectory() as folder:
        for stage, name in keys:
            check.measure(
                "defences",
                f"{stage} {name}",
                lambda stage=stage, name=name: compare_defence(check, stage, name, Path(folder)),  # type: ignore[misc]
            )


# -- lab ---------------------------------------------------------------------------------------------------------------

SHARES = ("harmful_score", "over_refusal", "finetune_accuracy", "retention")
LAB_DEFENCES = ("antibody-posterior", "sft")


def lab_run(defence: str, small: bool, folder: Path) -> dict[str, Any]:
    """Fine-tune lab-aligned on a poisoned upload and judge the result."""
    fresh_accelerator()
    start = time.monotonic()
    rows = {"num": 96, "epochs": 1} if small else {}
    chosen = {"regime": "full", "poison_ratio": 0.2, "seed": 0} | rows  # the lab's adapters hardly learn this task
    tuned = finetune("lab-aligned", output=folder / defence, defence=defence, **chosen)
    trained = time.monotonic() - start
    num = 16 if small else 256
    judged = evaluate(tuned.model, output=folder / f"{defence}-judged", num=num, batch_size=128)
    metrics = {key: value for key, value in judged.metrics.items() if isinstance(value, float)}
    return {"num": num, **metrics, "train_s": trained, "judge_s": time.monotonic() - start - trained}


def lab(check: Check) -> None:
    """Each defence; ``beside_the_cpu`` compares."""
    with tempfile.TemporaryDirectory() as folder:
        for name in LAB_DEFENCES:
            check.measure("lab", name, lambda name=name: lab_run(name, check.small, Path(folder)))  # type: ignore[misc]


def beside_the_cpu(check: Check, expected: Path) -> None:
    """The CPU's rows, and whether the GPU's agree: shares of n prompts within 2.6 standard errors of a difference."""
    if not expected.is_file():
        check.add({"part": "lab", "name": "on the CPU", "status": "failed", "why": "its process left no result"})
        return
    for row in json.loads(expected.read_text(encoding="utf-8"))["rows"]:
        here = next((r for r in check.rows if r["part"] == "lab" and r["name"] == row["name"]), {})
        shares = [key for key in SHARES if key in row and key in here]
        far = [key for key in shares if not _same_share(row[key], here[key], row["num"])]
        chosen = {key: row[key] for key in row if key not in {"part", "name", "status", "wall_s"}}
        if row["status"] == here.get("status") == "passed" and far:
            here["status"], here["why"] = "differs", f"from the CPU's in {', '.join(far)}"
        check.add({"part": "lab", "name": f"{row['name']} on the CPU", "status": row["status"], **chosen})


def _same_share(a: float, b: float, num: int) -> bool:
    middle = (a + b) / 2
    return abs(a - b) <= 2.6 * math.sqrt(2 * middle * (1 - middle) / num) + 1 / num


# -- heads -------------------------------------------------------------------------------------------------------------


def heads(check: Check) -> None:
    """Logits at the completions alone against all logits, on a model whose vocabulary is large beside its width."""
    size = step_cost.SIZES["tiny" if check.small else "standard"]
    size = replace(size, vocabulary=256 if check.small else 32000)
    for mode in ("fp32", "bf16"):
        plain: dict[str, Any] = {}

        def compared(head: str, mode: str = mode, plain: dict[str, Any] = plain) -> dict[str, Any]:
            found = _head_gradient(check.device, size, mode, all_logits=head == "full")
            plain.setdefault("gradient", found["gradient"])
            plain.setdefault("loss", found["loss"])
            off = (found.pop("gradient") - plain["gradient"]).norm() / plain["gradient"].norm()
            limit = 1e-4 if mode == "fp32" else 3e-2  # likelihood/completion.py
            loss_off = abs(found["loss"] - plain["loss"]) / plain["loss"]
            return {**found, "gradient_off": float(off), "limit": limit, "passed": max(float(off), loss_off) <= limit}

        for head in ("full", "kept"):
            check.measure("heads", f"{head} {mode}", lambda head=head: compared(head))  # type: ignore[misc]


def _head_gradient(device: torch.device, size: step_cost.Size, mode: str, *, all_logits: bool) -> dict[str, Any]:
    rows = step_cost.random_rows(size, size.batch, size.completion, seed=1)
    step = defended(step_cost.random_llama(size, device), size, {"user": rows}, sft(), device, mode=mode)
    context = step.trainer.context
    batch = StepBatch.of(rows)

    def token_mean(micro: MicroBatch) -> RowTerms:
        with context.autocast():
            nll = completion_nll(context.model, micro, pad_id=context.pad_id, plain=all_logits)
        return RowTerms(nll.row_total, nll.row_tokens)

    context.gradient(token_mean, batch)  # warm
    base = start_of_peak(device)
    start = time.monotonic()
    with matmul_precision(mode):
        sweep = context.gradient(token_mean, batch)
        synchronise(device)
    found = {"loss": sweep.loss, "ms": 1e3 * (time.monotonic() - start)} | peak_above(device, base)
    return found | {"gradient": torch.cat([g.double().flatten() for g in sweep.gradients])}


def start_of_peak(device: torch.device) -> int:
    """Forget earlier peaks; bytes that live now."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_above(device: torch.device, base: int) -> dict[str, float]:
    """The most that lived since ``start_of_peak`` above what lived then, and in all; nothing without a GPU."""
    if device.type != "cuda":
        return {}
    most = torch.cuda.max_memory_allocated()
    return {"step_gib": (most - base) / 2**30, "peak_gib": most / 2**30}


def sft() -> Defence:
    """The undefended fine-tuning stage."""
    return make_defence(Stage.FINETUNING, "sft")


def config(
    device: torch.device, mode: str, size: step_cost.Size, folder: str, *, checkpointing: bool = False
) -> SFTConfig:
    """TRL's configuration, the same for its trainer and for ours."""
    return SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=size.batch,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **arguments(device, mode),
    )


def defended(
    model: Any,
    size: step_cost.Size,
    rows: Mapping[str, Sequence[TokenizedRow]],
    defence: Defence,
    device: torch.device,
    *,
    mode: str = "bf16",
    checkpointing: bool = False,
    num_steps: int = 100,
) -> step_cost.TrainerStep:
    """A trainer of ours that can take single steps."""
    fresh_accelerator()
    trainer = DefendedTrainer(
        model,
        config(device, mode, size, tempfile.gettempdir(), checkpointing=checkpointing),
        defence=defence,
        rows=rows,
        processing_class=step_cost.tokenizer(size),
        refusals=step_cost.random_refusals(size),
    )
    if checkpointing:  # the Trainer's loop does so
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return step_cost.TrainerStep(trainer, num_steps)


# -- qlora -------------------------------------------------------------------------------------------------------------

QLORA_DEFENCES = (
    ("finetuning", "sft"),
    ("finetuning", "antibody"),
    ("finetuning", "lisa"),
    ("finetuning", "ema"),
    ("finetuning", "antibody-posterior"),
    ("alignment", "antibody"),
)


def qlora(check: Check) -> None:
    """Adapters of some defences on a random base of 4 bits."""
    with tempfile.TemporaryDirectory() as folder:
        for stage, name in QLORA_DEFENCES:
            check.measure(
                "qlora",
                f"{stage} {name}",
                lambda stage=stage, name=name: _qlora_run(check, stage, name, Path(folder)),  # type: ignore[misc]
            )


def _quantised(folder: Path, seed: int, device: torch.device) -> Any:
    """A random Llama of 4 bits; the same weights at every call with one seed."""
    place = folder / f"base-{seed}"
    if not place.is_dir():
        wide = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        tiny_llama(seed=seed, **wide, initializer_range=0.08).save_pretrained(place)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        place, quantization_config=four_bits, dtype=torch.bfloat16, device_map={"": device}
    )


def _qlora_run(check: Check, stage: str, name: str, folder: Path) -> dict[str, Any]:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    fresh_accelerator()
    defence = make_defence(Stage(stage), name, ACTIVE[Stage(stage), name])
    model = add_lora(_quantised(folder, 0, check.device), r=8, alpha=16, targets="all-linear", seed=0)
    base = _quantised(folder, 9, check.device) if defence.needs_base else None
    anchors = made_anchors(model, base) if defence.needs_anchors else None
    args = tiny_config(folder / "run", use_cpu=not check.cuda, bf16=True, max_steps=30, learning_rate=5e-3)
    run = DefendedTrainer(
        model,
        args,
        defence=defence,
        rows=prepared(defence, ROWS),
        processing_class=tiny_tokenizer(),
        refusals=random_refusals(),
        base=base,
        anchors=anchors,
    )
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    dtypes = sorted({str(p.dtype) for p in trainable_parameters(model).values()})
    saved = folder / f"{stage}-{name}"
    save_adapter(model, saved, base=str(folder / "base-0"), tokenizer=tiny_tokenizer())
    ids = torch.arange(3, 40, device=check.device)[None]
    again = PeftModel.from_pretrained(_quantised(folder, 0, check.device), saved)
    with torch.no_grad(), torch.autocast(check.device.type, torch.bfloat16):
        now, then = (m.eval()(input_ids=ids).logits.float() for m in (model, again))
    apart = float((now - then).norm() / now.norm())
    stored = dict(again.named_parameters())
    same = all(torch.equal(p, stored[name].to(p)) for name, p in trainable_parameters(model).items())
    first, last = statistics.mean(losses[:3]), statistics.mean(losses[-3:])
    finite = all(map(math.isfinite, losses))
    return {
        "loss_first": first,
        "loss_last": last,
        "adapter": "+".join(dtypes),
        "reloaded_same": same,
        "reloaded_off": apart,  # kernels differ between a layer that was trained and one that never was
        "passed": finite and last < first and same and apart <= 3e-2,
    }


# -- fsdp --------------------------------------------------------------------------------------------------------------


def fsdp(check: Check) -> None:
    """Run inside one process that is the only rank."""
    check.measure("fsdp", "the trainer refuses it", lambda: _fsdp_refusal(check))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if check.cuda else "gloo")
    check.measure("fsdp", "fully_shard, backward() into .grad", lambda: _sharded_gradient(check, engine=False))
    check.measure("fsdp", "fully_shard, StepContext.gradient", lambda: _sharded_gradient(check, engine=True))
    check.measure("fsdp", "stock SFTTrainer under FSDP2", lambda: _stock_fsdp(check))


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What ``accelerate launch`` with FSDP2 sets."""


@contextmanager
def fsdp_environment() -> Iterator[None]:
    """Inside, a new Trainer is one under FSDP2."""
    before = dict(os.environ)
    os.environ.update(FSDP2)
    fresh_accelerator()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        fresh_accelerator()


def _fsdp_refusal(check: Check) -> dict[str, Any]:
    if not check.cuda:
        raise Skipped("accelerate does not shard on a CPU")
    said = {}
    with fsdp_environment(), tempfile.TemporaryDirectory() as folder:
        for name in ("sft", "antibody"):
            fresh_accelerator()
            try:
                run = trainer(Path(folder) / name, make_defence(Stage.FINETUNING, name), use_cpu=False, max_steps=3)
                run.train()
                said[name] = f"trained: loss {run.state.log_history[0].get('loss')}"
            except ConfigError as error:
                said[name] = f"refused: {error}"
    return {**said, "passed": all(text.startswith(("refused", "trained")) for text in said.values())}


def _sharded_gradient(check: Check, *, engine: bool) -> dict[str, Any]:
    """|g - g_plain| / |g_plain| of one token mean, with and without ``fully_shard`` on this one rank."""
    rows = random_rows(8, seed=1)
    batch = step(rows, 4)
    plain = StepContext(tiny_llama().to(check.device)).gradient("token_mean_nll", batch).gradients
    mesh = init_device_mesh(check.device.type, (dist.get_world_size(),))
    model = tiny_llama().to(check.device)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    context = StepContext(model)
    assert all(isinstance(p, DTensor) for p in context.parameters)
    if engine:
        found = context.gradient("token_mean_nll", batch).gradients
    else:
        num_tokens = sum(end - start for row in rows for start, end in row.spans)
        for micro in batch.micro_batches:
            (context.completion_nll(micro).row_total.sum() / num_tokens).backward()
        found = [p.grad for p in context.parameters]  # type: ignore[misc]
    whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (whole, plain))
    off = float((a - b).norm() / b.norm())
    return {"gradient_off": off, "limit": 1e-5, "passed": off <= 1e-5}


def _stock_fsdp(check: Check) -> dict[str, Any]:
    """Whether this machine's libraries train under FSDP2 at all, without anything of ours."""
    if not check.cuda:
        raise Skipped("accelerate does not shard on a CPU")
    data = datasets.Dataset.from_dict({"input_ids": [list(row.input_ids) for row in random_rows(22, seed=1)]})
    with fsdp_environment(), tempfile.TemporaryDirectory() as folder:
        args = tiny_config(Path(folder), use_cpu=False, max_steps=3)
        run = SFTTrainer(tiny_llama(), args, train_dataset=data, processing_class=tiny_tokenizer())
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        return {"loss_last": losses[-1], "passed": run.is_fsdp_enabled and all(map(math.isfinite, losses))}


# -- cost --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Large:
    """A Llama's shape beside what ``step_cost.Size`` says of a step."""

    size: step_cost.Size
    kv_heads: int
    tied: bool
    checkpointing: bool
    rounds: int


def large_sizes(small: bool) -> dict[str, Large]:
    """Shapes of Llama 3.2 1B and Llama 2 7B; rows of 512 tokens, half of them prompt."""
    if small:
        tiny = step_cost.SIZES["tiny"]
        return {"tiny": Large(tiny, 2, False, False, 2), "tiny checkpointed": Large(tiny, 2, False, True, 2)}
    step = {"rank": 32, "prompt": 256, "completion": 256, "refusal": 16}
    one = step_cost.Size(layers=16, width=2048, mlp=8192, heads=32, vocabulary=128256, batch=8, **step)
    seven = step_cost.Size(layers=32, width=4096, mlp=11008, heads=32, vocabulary=32000, batch=8, **step)
    return {"1B": Large(one, 8, True, False, 7), "7B": Large(seven, 32, False, True, 5)}


def random_weights(large: Large, device: torch.device, dtype: torch.dtype) -> Any:
    """Made on the device, in seconds."""
    size = large.size
    shape = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=large.kv_heads,
        tie_word_embeddings=large.tied,
        pad_token_id=step_cost.PAD,
        bos_token_id=step_cost.EOS,
        eos_token_id=step_cost.EOS,
    )
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(shape, dtype=dtype).requires_grad_(False)


def twin(model: nn.Module, seed: int = 0) -> Any:
    """The same frozen weights, not copied, under modules and an adapter of their own."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return add_lora(copy.deepcopy(model, shared), r=32, alpha=4, seed=seed)  # type: ignore[arg-type]


def steps_of(check: Check, large: Large, mode: str, wanted: Sequence[str]) -> dict[str, step_cost.TrainerStep]:
    """The steps that take turns, each on a twin of one random model."""
    size, num_steps = large.size, large.rounds + step_cost.WARM_UP + step_cost.SPARE
    num = size.batch * num_steps
    rows = {
        "user": step_cost.random_rows(size, num, size.completion, seed=1),
        "harmful": step_cost.random_rows(size, num, size.completion, seed=2),
        "alignment": step_cost.random_rows(size, num, size.refusal, seed=3),
    }
    start = time.monotonic()
    weights = random_weights(large, check.device, torch.bfloat16 if mode == "bf16" else torch.float32)
    synchronise(check.device)
    print(f"   made {sum(p.numel() for p in weights.parameters()) / 1e9:.2f} billion weights in "
          f"{time.monotonic() - start:.1f} s", flush=True)  # fmt: skip

    def stock() -> step_cost.TrainerStep:
        labels = [[-100] * size.prompt + list(row.input_ids[size.prompt :]) for row in rows["user"]]
        data = datasets.Dataset.from_dict(
            {"input_ids": [list(row.input_ids) for row in rows["user"]], "labels": labels}
        )
        fresh_accelerator()
        args = config(check.device, mode, size, tempfile.gettempdir(), checkpointing=large.checkpointing)
        trainer = SFTTrainer(
            model=twin(weights), args=args, train_dataset=data, processing_class=step_cost.tokenizer(size)
        )
        if large.checkpointing:
            trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return step_cost.TrainerStep(trainer, num_steps)

    # The posterior's weights are numbers read once at the start; what its step adds is the rehearsal.
    posterior = {"prior": (1.0, math.inf)}
    made = {
        "sft (ours)": (Stage.FINETUNING, "sft", {}),
        "antibody": (Stage.FINETUNING, "antibody", {}),
        "rehearsal of antibody-posterior": (Stage.FINETUNING, "antibody-posterior", posterior),
        "antibody alignment": (Stage.ALIGNMENT, "antibody", {}),
    }
    steps = {"SFTTrainer": stock()} if "SFTTrainer" in wanted else {}
    for name, (stage, which, options) in made.items():
        if name in wanted:
            defence = make_defence(stage, which, options)
            steps[name] = defended(
                twin(weights), size, rows, defence, check.device,
                mode=mode, checkpointing=large.checkpointing, num_steps=num_steps,
            )  # fmt: skip
    return steps


ALL_STEPS = ("SFTTrainer", "sft (ours)", "antibody", "rehearsal of antibody-posterior", "antibody alignment")


def cost(check: Check) -> None:
    """Each size in turn; then what the alignment costs at the precision that it has by default."""
    sizes = large_sizes(check.small)
    for name, large in sizes.items():
        _cost_of(check, name, large, "bf16", ALL_STEPS)
    first = next(iter(sizes))
    short = replace(sizes[first], rounds=3)
    for mode in ("tf32", "fp32"):
        if check.cuda and check.left() > 15:
            _cost_of(check, f"{first} {mode}", short, mode, ("sft (ours)", "antibody alignment"))


def _cost_of(check: Check, label: str, large: Large, mode: str, wanted: Sequence[str]) -> None:
    steps: dict[str, step_cost.TrainerStep] = {}

    def build() -> dict[str, Any]:
        start = time.monotonic()
        steps.update(steps_of(check, large, mode, wanted))
        return {"build_s": time.monotonic() - start}

    check.measure("cost", f"{label}: models and trainers", build)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, dict[str, float]] = {}
    with matmul_precision(mode):
        for number in range(step_cost.WARM_UP + large.rounds):
            if check.left() <= 0 and number > step_cost.WARM_UP + 1:
                break
            for name in list(steps):
                try:
                    base = start_of_peak(check.device)
                    spent = step_cost.take(steps[name])
                    memory[name] = peak_above(check.device, base)
                except Exception as error:  # out of memory, say: the others go on
                    why = f"{type(error).__name__}: {error}"[:600]
                    check.add({"part": "cost", "name": f"{label}: {name}", "status": "failed", "why": why})
                    traceback.print_exc()
                    del steps[name]
                    continue
                if number >= step_cost.WARM_UP:
                    seconds[name].append(spent)
    tokens = large.size.batch * (large.size.prompt + large.size.completion)
    medians = {name: statistics.median(values) for name, values in seconds.items() if values and name in steps}
    for name, median in medians.items():
        row = {"part": "cost", "name": f"{label}: {name}", "status": "passed", "ms": 1e3 * median}
        row |= {"tokens_per_s": tokens / median, **memory[name], "rounds": len(seconds[name])}
        row |= {"spread": (max(seconds[name]) - min(seconds[name])) / median}
        for other, key in (("SFTTrainer", "x_SFTTrainer"), ("sft (ours)", "x_ours")):
            if other in medians:
                row[key] = median / medians[other]
        check.add(row)
    if "sft (ours)" in steps and "antibody" in wanted:
        name = f"{label}: evidence of antibody-posterior"
        check.measure("cost", name, lambda: _evidence(check, large, steps["sft (ours)"], medians["sft (ours)"]))
    if large.checkpointing and steps:
        on = any(
            getattr(m, "gradient_checkpointing", False) for m in next(iter(steps.values())).trainer.model.modules()
        )
        check.add({"part": "cost", "name": f"{label}: checkpointing", "status": "passed" if on else "differs"})
    steps.clear()
    gc.collect()
    if check.cuda:
        torch.cuda.empty_cache()


def _evidence(check: Check, large: Large, ours: step_cost.TrainerStep, of_step: float) -> dict[str, Any]:
    """What is read of every row of an upload before the first step: its prompt, with and without the adapter."""
    context: StepContext = ours.trainer.context  # type: ignore[attr-defined]
    rows = step_cost.random_rows(large.size, 8 if check.small else 128, large.size.completion, seed=5)
    states(context, rows[: large.size.batch], before=True)  # warm
    start = time.monotonic()
    for before in (True, False):
        states(context, rows, before=before)
    per_row = (time.monotonic() - start) / len(rows)
    return {"ms_per_row": 1e3 * per_row, "x_ours_per_row": per_row / (of_step / large.size.batch)}


# -- the whole ---------------------------------------------------------------------------------------------------------

PARTS = {"defences": defences, "lab": lab, "heads": heads, "qlora": qlora, "fsdp": fsdp, "cost": cost}


class Child:
    """A part in a process of its own, beside the others."""

    def __init__(self, check: Check, part: str, device: str, environment: Mapping[str, str]):
        self.part, self.log = part, (check.output / f"{part}-{device}.log").open("w")
        self.result = check.output / f"{part}-{device}.json"
        self.result.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--output", str(check.output), "--parts", part]
        command += ["--device", device, "--file", self.result.name, *(["--small"] if check.small else [])]
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=self.log, stderr=subprocess.STDOUT
        )

    def wait(self, seconds: float) -> None:
        """Until it is done, or has had its time."""
        try:
            self.process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()


def one_rank() -> dict[str, str]:
    """What ``torchrun --nproc-per-node 1`` sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def whole(check: Check, parts: Sequence[str]) -> None:
    """All parts: two of them beside the others, the timed one last and alone."""
    children: dict[str, Child] = {}
    if "lab" in parts and check.cuda:
        children["lab"] = Child(check, "lab", "cpu", {"CUDA_VISIBLE_DEVICES": ""})
    if "fsdp" in parts:
        children["fsdp"] = Child(check, "fsdp", check.device.type, one_rank())
    try:
        for part in (p for p in SECONDS if p in parts):
            check.begin(part)
            if part == "cost":
                _collect(check, children)
                check.begin(part)
            if part != "fsdp":
                PARTS[part](check)
        _collect(check, children)
    finally:
        for child in children.values():
            if child.process.poll() is None:
                child.process.kill()


def _collect(check: Check, children: dict[str, Child]) -> None:
    for part in list(children):
        child = children.pop(part)
        child.wait(min(SECONDS[part], check.started + TOTAL - time.monotonic()))
        if part == "lab":
            beside_the_cpu(check, child.result)
        elif child.result.is_file():
            for row in json.loads(child.result.read_text(encoding="utf-8"))["rows"]:
                check.add(row)
        else:
            why = f"its process ended with {child.process.returncode} and no result; see {child.log.name}"
            check.add({"part": part, "name": "process", "status": "failed", "why": why})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all passed; 1: something differs or failed; 2: there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="little of everything: tries the script itself")
    parser.add_argument("--parts", default=",".join(SECONDS), help="comma-separated (default: all)")
    parser.add_argument("--file", default=RESULTS, help=argparse.SUPPRESS)  # of a part's own process
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(SECONDS):
        parser.error(f"--parts: no such part: {', '.join(sorted(unknown))}. There are {', '.join(SECONDS)}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_check: there is no GPU here, so nothing was checked. Try the script with --device cpu --small.")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the parts' processes are ended too
    device = torch.device("cpu") if options.device == "cpu" else torch.device("cuda", 0)
    check = Check(options.output, device, options.small, options.file)
    own_process = options.file != RESULTS
    if own_process:
        check.ends = check.started + TOTAL
        PARTS[parts[0]](check)
        check.write()
        sys.stdout.flush()
        os._exit(0)  # torch's threads can abort the interpreter's own end, after all is saved
    whole(check, parts)
    check.write()
    print((options.output / (RESULTS[:-4] + "md")).read_text(encoding="utf-8"))
    return int(any(row["status"] in ("differs", "failed") for row in check.rows))


if __name__ == "__main__":
    sys.exit(main())
