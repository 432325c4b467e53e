"""What one optimiser step of Antibody costs, in units of one plain SFT step.

    python benchmarks/step_cost.py --json

Six steps take turns (A B C D E F A B C D E F ...), each on its own copy of one random Llama with LoRA (r 32, alpha 4,
on q, k and v: the release's), each with clipping and AdamW:

    sft                  stock ``trl.SFTTrainer``                                 1 forward, 1 backward
    undefended           ``DefendedTrainer`` without a defence                    1, 1
    finetune             ``DefendedTrainer`` with Antibody, fine-tuning stage     1 + a short one, 1
    align                ``DefendedTrainer`` with Antibody, alignment stage       4, 4; for two of them the prompts once
    published_finetune   the released scheme, written from its description        3, 1
    published_align      the released scheme, written from its description        5, 5 and a deep copy of the model

The last two read ordinary logits of all positions with Hugging Face's loss. The stock trainer's fused head takes every
position on a CPU and computes its logits twice; ours reads completions only, once. That, and not the method, is how a
defended step can undercut ``sft``: so every ratio to ``sft`` has one to ``undefended`` beside it.

What ``align`` can come to, in multiplications of an undefended step: .98 for each of two gradients of the harmful
loss (at w and at w_pert), .44 for that of the alignment loss, whose rows are shorter, and .24 for that of the refusal
loss, whose prompts are the harmful rows' and have been computed: 2.64. lambda depends on each of the gradients, so
that no two have one backward pass; and the rows of the alignment loss are drawn by themselves, so that no other
prompt is shared. ``finetune``, with its forward over 11 tokens of a refusal, comes to 1.04.

A batch is 8 rows of 64 prompt tokens; a completion has 96, a refusal 12; an alignment row is a prompt and its own
refusal. No row is padded. No gradient checkpointing; float32 on a CPU, bf16 autocast on CUDA.

Time is the process's CPU time on a CPU, so that other work on the machine counts for little, and that of CUDA events on
CUDA. Memory is the peak of live tensors within a step above what lived at its start: from the torch profiler on a CPU,
from the allocator on CUDA. A ratio is one of medians.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import copy
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from antibody_llm.data.collate import IGNORED, pad
from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.defences.alignment.antibody import AntibodyAlignment, AntibodyAlignmentConfig
from antibody_llm.defences.finetuning.antibody import AntibodyFinetuning, AntibodyFinetuningConfig
from antibody_llm.defences.finetuning.sft import FinetuningSFT
from antibody_llm.likelihood.refusals import Refusals, Scoring, usable_scoring
from antibody_llm.models.adapters import add_lora, trainable_parameters
from antibody_llm.primitives.gradients import combined, difference, dot, norm
from antibody_llm.training.defence import Defence, NoOptions
from antibody_llm.training.trainer import DefendedTrainer

PAD, EOS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of the model and of a step; lengths in tokens, the end-of-sequence token included."""

    layers: int
    width: int
    mlp: int
    heads: int
    vocabulary: int
    rank: int
    batch: int
    prompt: int
    completion: int
    refusal: int


SIZES = {
    "standard": Size(
        layers=8,
        width=512,
        mlp=1376,
        heads=8,
        vocabulary=8192,
        rank=32,
        batch=8,
        prompt=64,
        completion=96,
        refusal=12,
    ),
    "tiny": Size(
        layers=2, width=32, mlp=64, heads=2, vocabulary=128, rank=4, batch=4, prompt=6, completion=8, refusal=3
    ),
}
WARM_UP = 2
"""Rounds before the first that counts: AdamW makes its moments, the allocator its pools."""
SPARE = 2
"""Steps after the last that counts: for the memory."""


# -- model and rows ----------------------------------------------------------------------------------------------------


def random_llama(size: Size, device: torch.device) -> PeftModel:
    """The same weights at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        pad_token_id=PAD,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
    return add_lora(model, r=size.rank, alpha=4, seed=0)


def tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """Only asked for its special tokens: rows arrive as tokens."""
    vocabulary = {"<pad>": PAD, "</s>": EOS} | {f"t{i}": i for i in range(2, size.vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t2"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def random_rows(size: Size, num: int, completion: int, seed: int) -> list[TokenizedRow]:
    """``num`` rows of one prompt and one completion of ``completion`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    length = size.prompt + completion
    tokens = torch.randint(2, size.vocabulary, (num, length), generator=generator)
    tokens[:, -1] = EOS
    span = ((size.prompt, length),)
    return [TokenizedRow(i, tuple(ids), span, Template.TEXT) for i, ids in enumerate(tokens.tolist())]


def random_refusals(size: Size, num: int = 100) -> Refusals:
    """As many as the shipped list has, all of one length."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(2, size.vocabulary, (num, size.refusal), generator=generator)
    tokens[:, -1] = EOS
    ids = tuple(tuple(row) for row in tokens.tolist())
    return Refusals(tuple(f"refusal {i}" for i in range(num)), {Template.TEXT: ids})


# -- the published scheme, from its description ------------------------------------------------------------------------


class Published:
    """Three forwards and one backward to fine-tune; five and five, and a deep copy, to align; as the release does it.

    The hyperparameters are the defences' own, so that the update is theirs too: only the way there differs.

    Args:
        model: With its trainable parameters chosen.
        refusals: The generic refusals.
        autocast: Entered around every forward.
    """

    def __init__(
        self, model: nn.Module, refusals: Refusals, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.model, self.refusals, self.autocast = model, refusals, autocast
        self.parameters = list(trainable_parameters(model).values())
        self.lam: Tensor | None = None

    def finetune(self, rows: Sequence[TokenizedRow], tau: float) -> None:
        """Leaves the gradient of the weighted loss in ``.grad``."""
        with torch.no_grad():
            refused = self._token_losses([self.refusals.row(row, row.row_id) for row in rows])  # forward 1
            wanted = self._token_losses(rows)  # forward 2
            weight = torch.softmax((_row_mean(*refused) - _row_mean(*wanted)) / tau, dim=0)
        nll, mask = self._token_losses(rows)  # forward 3
        ((weight * nll.sum(dim=1)).sum() / (weight * mask.sum(dim=1)).sum()).backward()

    def align(
        self,
        alignment: Sequence[TokenizedRow],
        harmful: Sequence[TokenizedRow],
        step: int,
        options: AntibodyAlignmentConfig,
    ) -> None:
        """Leaves the update in ``.grad``."""
        refused = [self.refusals.row(row, step * len(harmful) + i) for i, row in enumerate(harmful)]
        g_h = self._gradient(self.model, harmful)
        attacked = copy.deepcopy(self.model)
        factor = options.alpha / (norm(g_h) + 1e-7)
        with torch.no_grad():
            for p, g in zip(trainable_parameters(attacked).values(), g_h, strict=True):
                p.sub_((factor * g).to(p.dtype))
        g_p = self._gradient(attacked, harmful)
        g_r = self._gradient(attacked, refused)
        g_h = self._gradient(self.model, harmful)  # once more, as released
        g_a = self._gradient(self.model, alignment)
        d = difference(g_h, g_p)
        raw = (options.eta - dot(g_a, d) / (norm(g_a) * norm(d) + 1e-8)).clamp(min=0.0)
        self.lam = raw if self.lam is None else options.m * self.lam + (1 - options.m) * raw
        for p, g in zip(self.parameters, combined(g_a, (self.lam, d), (options.lam2, g_r)), strict=True):
            p.grad = g

    def _token_losses(self, rows: Sequence[TokenizedRow]) -> tuple[Tensor, Tensor]:
        """Nats of each position, 0 off the completion, and which positions are on it: [B, T - 1] each."""
        tensors = pad(rows, PAD, device=self.parameters[0].device)
        with self.autocast():
            logits = self.model(
                input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
            ).logits.float()
        targets = tensors["labels"][:, 1:]
        nll = F.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none", ignore_index=IGNORED
        )
        return nll.view(targets.shape), targets != IGNORED

    def _gradient(self, model: nn.Module, rows: Sequence[TokenizedRow]) -> list[Tensor]:
        """Of Hugging Face's token-mean loss; copied out of ``.grad``, which is emptied."""
        tensors = pad(rows, PAD, device=self.parameters[0].device)
        with self.autocast():
            loss = model(
                input_ids=tensors["input_ids"],
                attention_mask=tensors["attention_mask"],
                labels=tensors["labels"],
                use_cache=False,
            ).loss
        loss.backward()
        gradient = [p.grad.clone() for p in trainable_parameters(model).values()]  # type: ignore[union-attr]
        model.zero_grad()
        return gradient


def _row_mean(nll: Tensor, mask: Tensor) -> Tensor:
    return nll.sum(dim=1) / mask.sum(dim=1)


# -- the six steps -----------------------------------------------------------------------------------------------------


class TrainerStep:
    """One optimiser step of a Trainer, in the order of its own loop, without logging or saving."""

    def __init__(self, trainer: SFTTrainer, num_steps: int) -> None:
        self.trainer = trainer
        loader = trainer.get_train_dataloader()
        trainer.state.max_steps = num_steps
        trainer.current_gradient_accumulation_steps = 1
        self.model, loader = trainer._prepare_for_training(num_steps, loader, None)
        self.batches: Iterator[Any] = iter(loader)
        if isinstance(trainer, DefendedTrainer):
            trainer.defence.check(trainer.context)
            trainer.defence.start(trainer.context)

    def fetch(self) -> tuple[Any, Any]:
        """The rows of the coming step; not timed."""
        (batch,), num_items = self.trainer.get_batch_samples(self.batches, 1, self.trainer.args.device)
        return batch, num_items

    def gradients(self, batch: Any, num_items: Any) -> None:
        """Leaves them in ``.grad``."""
        self.trainer.training_step(self.model, batch, num_items)

    def update(self) -> None:
        """Clip, move the weights, empty ``.grad``."""
        trainer = self.trainer
        assert trainer.optimizer is not None
        assert trainer.lr_scheduler is not None
        trainer._clip_grad_norm(self.model)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        trainer.state.global_step += 1


class PublishedStep:
    """One step of the published scheme, on the rows that the Trainer's step of the same stage would see."""

    def __init__(self, published: Published, batches: Iterator[tuple[Any, ...]], take: Callable[..., None]) -> None:
        self.published, self.batches, self.take = published, batches, take
        self.optimizer = torch.optim.AdamW(published.parameters, lr=LEARNING_RATE, fused=True)  # the Trainer's own

    def fetch(self) -> tuple[Any, ...]:
        """The rows of the coming step; not timed."""
        return next(self.batches)

    def gradients(self, *rows: Any) -> None:
        """Leaves them in ``.grad``."""
        self.take(*rows)

    def update(self) -> None:
        """Clip, move the weights, empty ``.grad``."""
        nn.utils.clip_grad_norm_(self.published.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


LEARNING_RATE = 1e-4
Step = TrainerStep | PublishedStep


def six_steps(size: Size, num_steps: int, scoring: Scoring, folder: Path) -> dict[str, Step]:
    """Name to step, in the order in which they take turns."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    num = size.batch * num_steps
    rows = {
        "user": random_rows(size, num, size.completion, seed=1),
        "harmful": random_rows(size, num, size.completion, seed=2),
        "alignment": random_rows(size, num, size.refusal, seed=3),
    }
    refusals, words = random_refusals(size), tokenizer(size)

    def arguments(name: str) -> SFTConfig:
        return SFTConfig(
            output_dir=str(folder / name),
            per_device_train_batch_size=size.batch,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )

    def stock() -> TrainerStep:
        data = datasets.Dataset.from_dict(
            {
                "input_ids": [list(row.input_ids) for row in rows["user"]],
                "labels": [[IGNORED] * size.prompt + list(row.input_ids[size.prompt :]) for row in rows["user"]],
            }
        )
        model = random_llama(size, device)
        trainer = SFTTrainer(model=model, args=arguments("sft"), train_dataset=data, processing_class=words)
        return TrainerStep(trainer, num_steps)

    def defended(name: str, defence: Defence) -> TrainerStep:
        trainer = DefendedTrainer(
            random_llama(size, device),
            arguments(name),
            defence=defence,
            rows=rows,
            processing_class=words,
            refusals=refusals,
        )
        return TrainerStep(trainer, num_steps)

    def published() -> Published:
        return Published(
            random_llama(size, device).train(),
            refusals,
            lambda: torch.autocast(device.type, torch.bfloat16, enabled=cuda),
        )

    finetuning, alignment = AntibodyFinetuningConfig(scoring=scoring), AntibodyAlignmentConfig()
    finetuner, aligner = published(), published()

    def cut(role: str) -> list[list[TokenizedRow]]:
        return [rows[role][i : i + size.batch] for i in range(0, num, size.batch)]

    return {
        "sft": stock(),
        "undefended": defended("undefended", FinetuningSFT(NoOptions())),
        "finetune": defended("finetune", AntibodyFinetuning(finetuning)),
        "align": defended("align", AntibodyAlignment(alignment)),
        "published_finetune": PublishedStep(
            finetuner,
            ((some,) for some in cut("user")),
            lambda some: finetuner.finetune(some, finetuning.tau),
        ),
        "published_align": PublishedStep(
            aligner,
            zip(cut("alignment"), cut("harmful"), range(num_steps), strict=True),
            lambda some, harmful, step: aligner.align(some, harmful, step, alignment),
        ),
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


def take(step: Step) -> float:
    """Seconds of one step: CPU time of the process, or the GPU's between two events."""
    rows = step.fetch()
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step.gradients(*rows)
        step.update()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    before = time.process_time()
    step.gradients(*rows)
    step.update()
    return time.process_time() - before


def peak_bytes(step: Step) -> int:
    """The most that lives at once within one step, above what lived at its start."""
    rows = step.fetch()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.gradients(*rows)
        step.update()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step.gradients(*rows)
        step.update()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    if not events:
        raise RuntimeError(f"the profiler of torch {torch.__version__} reports no allocation: no peak to be had.")
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(size: Size, rounds: int, scoring: Scoring) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        steps = six_steps(size, WARM_UP + rounds + SPARE, scoring, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(WARM_UP + rounds):
            print(f"round {number + 1} of {WARM_UP} + {rounds}", file=sys.stderr)
            for name, step in steps.items():
                spent = take(step)
                if number >= WARM_UP:
                    seconds[name].append(spent)
        memory = {name: peak_bytes(step) for name, step in steps.items()}
        context = steps["finetune"].trainer.context  # type: ignore[union-attr]
        form = usable_scoring(context.model, scoring)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    quartiles = {name: _quartiles(values) for name, values in seconds.items()}
    ratio = {name: median[name] / median["sft"] for name in steps}
    cuda = torch.cuda.is_available()
    return {
        "finetune_ratio": ratio["finetune"],
        "align_ratio": ratio["align"],
        "published_finetune_ratio": ratio["published_finetune"],
        "published_align_ratio": ratio["published_align"],
        "align_extra_memory_ratio": memory["align"] / memory["sft"],
        "over_undefended": {name: median[name] / median["undefended"] for name in steps},
        "memory_over_undefended": {name: memory[name] / memory["undefended"] for name in steps},
        "median_seconds": median,
        "quartiles_seconds": quartiles,
        "spread": {name: (high - low) / median[name] for name, (low, high) in quartiles.items()},
        "peak_bytes": memory,
        "rounds": rounds,
        "warm_up": WARM_UP,
        "clock": "cuda events" if cuda else "process CPU time",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "dtype": "bf16 autocast" if cuda else "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scoring": str(form),
        "lora": {"r": size.rank, "alpha": 4, "targets": ["q_proj", "k_proj", "v_proj"]},
        "size": vars(size),
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def table(result: dict[str, Any]) -> Table:
    """The same, for people."""
    title = f"{result['device']}, threads: {result['threads']}, {result['rounds']} rounds, scoring {result['scoring']}"
    shown = Table("step", "median s", "quartiles s", "x sft", "x undef.", "peak MiB", title=title)
    for name, median in result["median_seconds"].items():
        low, high = result["quartiles_seconds"][name]
        times, own = median / result["median_seconds"]["sft"], result["over_undefended"][name]
        peak = result["peak_bytes"][name] / 2**20
        shown.add_row(name, f"{median:.3f}", f"{low:.3f} to {high:.3f}", f"{times:.2f}", f"{own:.2f}", f"{peak:.0f}")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count, 2 or more (default 15)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads on a CPU (default 1)")
    parser.add_argument("--size", choices=SIZES, default="standard", help="tiny is for the smoke test")
    parser.add_argument("--scoring", choices=list(Scoring), default=Scoring.AUTO, help="of refusals, in fine-tuning")
    options = parser.parse_args(argv)
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be 2 or more (quartiles need two), --threads 1 or more.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # TRL's own
    datasets.disable_progress_bars()
    torch.set_num_threads(options.threads)
    result = measure(SIZES[options.size], options.rounds, Scoring(options.scoring))
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
