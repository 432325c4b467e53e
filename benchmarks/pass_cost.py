"""What a step of each defence costs beside the passes that its specification counts, each timed alone.

    python benchmarks/pass_cost.py --json > benchmarks/results/pass_cost.json

    ratio = CPU time of an optimiser step / sum over its passes of (how often * CPU time of the pass alone)

A step is the Trainer's: the defence's ``step`` and ``after_update``, with clipping and AdamW between them. A pass is
one forward of the model over the rows of one role, with its backward to the trainable weights unless it is called
"forward", and nothing else: no clipping, no optimiser, no sum of gradients. So what a ratio has above 1 is the
arithmetic around the passes, the optimiser's included; what it has below 1 is a pass of which a defence needs only a
part. Two defences read the loss off the model at every depth, and one compares activations with noise: parts of their
own, as in the specifications' counts.

Which passes a step has is written down here, not measured; tests/benchmarks/test_pass_cost.py counts those that are
really made. What a defence does every few steps is averaged over a whole cycle of ``cycle`` steps. Defences that only
rewrite the upload are timed on rows that need no rewriting. The post stage has no steps: one repair counts as one.
Repairs that compare the matrices of several models are not here: their time is that of the matrices, not of passes.

Every round takes all cases in turn, each followed at once by its own passes; a ratio is the median over rounds. All
run on one random Llama with LoRA, that of step_cost.py at shorter rows (a batch is 4 rows of 16 prompt tokens; a
completion has 24, a refusal 8), at a learning rate that leaves the weights almost where they are, on one thread.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache
from trl import SFTConfig

from antibody_llm.data.roles import MAIN_ROLE, Role, Stage
from antibody_llm.defences.alignment.repnoise import mmd, normal
from antibody_llm.defences.catalogue import make_defence, make_repair
from antibody_llm.likelihood.completion import bare, completion_nll
from antibody_llm.likelihood.microbatch import MicroBatch, StepBatch
from antibody_llm.models.layout import decoder_layers, final_norm
from antibody_llm.primitives.likelihood import token_nll
from antibody_llm.training.defence import Defence
from antibody_llm.training.lens import lens_nll
from antibody_llm.training.step import StepContext
from antibody_llm.training.trainer import DefendedTrainer
from step_cost import SIZES, Size, TrainerStep, random_llama, random_refusals, random_rows, tokenizer

SHORT = {"standard": replace(SIZES["standard"], batch=4, prompt=16, completion=24, refusal=8), "tiny": SIZES["tiny"]}
WARM_UP = 2
"""Rounds before the first that counts."""
LEARNING_RATE = 1e-7
TARGET = 1.15
"""Of every ratio."""

Batches = Mapping[str, StepBatch]
Run = Callable[[], object]
Part = Callable[[StepContext, Batches], Run]
"""Makes ready, untimed, what is then timed."""


# -- parts of a step ---------------------------------------------------------------------------------------------------


def only(batch: StepBatch) -> MicroBatch:
    """The one micro-batch of a step here."""
    (micro,) = batch.micro_batches
    return micro


def there_and_back(context: StepContext, micro: MicroBatch) -> None:
    nll = completion_nll(context.model, micro, pad_id=context.pad_id)
    torch.autograd.grad(nll.row_total.sum() / nll.row_tokens.sum(), context.parameters)


def trained(role: Role) -> Part:
    """Forward and backward over the rows of a role."""
    return lambda context, batches: partial(there_and_back, context, only(batches[role]))


def trained_on_prompts(*, refusals: bool) -> Part:
    """Forward and backward over harmful completions, and over refusals, on prompts that are computed once for both."""

    def part(context: StepContext, batches: Batches) -> Run:
        harmful = batches[Role.HARMFUL]
        refused = [context.with_refusals(harmful)] if refusals else []
        return partial(context.gradients_on_shared_prompts, *refused, harmful)

    return part


def trained_pairs(context: StepContext, batches: Batches) -> Run:
    """Forward and backward over harmful prompts, each with its harmful completion and with a refusal: two batches."""
    harmful, refused = only(batches[Role.HARMFUL]), only(context.with_refusals(batches[Role.HARMFUL]))
    both = MicroBatch(harmful.rows + refused.rows, harmful.counted * 2, harmful.positions * 2)
    return partial(there_and_back, context, both)


def read(role: Role) -> Part:
    """Forward alone, without graph."""

    def part(context: StepContext, batches: Batches) -> Run:
        forward = torch.no_grad()(completion_nll)
        return partial(forward, context.model, only(batches[role]), pad_id=context.pad_id)

    return part


def read_onto_prompt(context: StepContext, batches: Batches) -> Run:
    """Forward of refusals alone, going on from the kept keys and values of the user's prompts."""
    rows = only(batches[Role.USER]).rows
    past = rows[0].spans[0][0]
    ids = torch.tensor([row.input_ids for row in rows], device=context.device)
    refusals = torch.tensor([context.refusals.of(row, row.row_id) for row in rows], device=context.device)
    inputs = refusals[:, :-1]  # the forward of the completions predicts the first token
    kept: Any = DynamicCache()

    @torch.no_grad()
    def run() -> Tensor:
        cache = DynamicCache()
        for number, layer in enumerate(kept.layers):
            cache.update(layer.keys, layer.values, number)
        mask = torch.ones(len(rows), past + inputs.shape[1], dtype=torch.long, device=context.device)
        logits = context.model(input_ids=inputs, attention_mask=mask, past_key_values=cache, use_cache=True).logits
        return token_nll(logits, refusals[:, 1:])

    with torch.no_grad():
        context.model(input_ids=ids[:, :past], past_key_values=kept, use_cache=True)
    return run


def lens(context: StepContext, batches: Batches) -> Run:
    """An unembedding of the harmful completions, and back, at the depth of every layer's input."""
    rows = only(batches[Role.HARMFUL]).rows
    model: Any = bare(context.model)
    norm, head, width = final_norm(model), model.get_output_embeddings(), model.config.hidden_size
    labels = torch.tensor([[-100] * r.spans[0][0] + list(r.input_ids[r.spans[0][0] :]) for r in rows])
    labels = labels.to(context.device)
    hidden = [torch.randn(*labels.shape, width, device=context.device) for _ in decoder_layers(model)]

    def run() -> None:
        inputs = [h.requires_grad_() for h in hidden]
        torch.autograd.grad([lens_nll(h, labels, norm, head).sum() for h in inputs], inputs)

    return run


def noise(context: StepContext, batches: Batches) -> Run:
    """MMD between every layer's output on harmful rows and a fresh draw of noise, and back."""
    rows = only(batches[Role.HARMFUL]).rows
    model: Any = bare(context.model)
    shape = (len(rows), len(rows[0].input_ids), model.config.hidden_size)
    states = [torch.randn(shape, device=context.device) for _ in decoder_layers(model)]

    def run() -> None:
        inputs = [state.requires_grad_() for state in states]
        drawn = (normal(shape, 0, number).to(context.device) for number in range(len(inputs)))
        torch.autograd.grad([mmd(x.flatten(1), z.flatten(1)) for x, z in zip(inputs, drawn, strict=True)], inputs)

    return run


def read_answers(context: StepContext, batches: Batches) -> Run:
    """Forward over the user's answers, each behind the last token of its prompt."""
    rows = [
        replace(row, input_ids=row.input_ids[start - 1 : end], spans=((1, 1 + end - start),))
        for row in only(batches[Role.USER]).rows
        for start, end in row.spans
    ]
    return partial(torch.no_grad()(completion_nll), context.model, MicroBatch.of(rows), pad_id=context.pad_id)


def read_all_harmful(context: StepContext, batches: Batches) -> Run:
    """Forward over every harmful row."""
    micro = read(Role.HARMFUL)(context, batches)
    num = len(context.rows[Role.HARMFUL]) // len(only(batches[Role.HARMFUL]).rows)
    return lambda: [micro() for _ in range(num)]


@dataclass(frozen=True)
class Kind:
    """A part, and what it counts as: passes over one batch (a pair is two), 0 where it is no pass of the model."""

    part: Part
    forwards: int
    backwards: int


KINDS = {
    "alignment": Kind(trained(Role.ALIGNMENT), 1, 1),
    "harmful": Kind(trained(Role.HARMFUL), 1, 1),
    "benign": Kind(trained(Role.BENIGN), 1, 1),
    "user": Kind(trained(Role.USER), 1, 1),
    "harmful, on its prompts": Kind(trained_on_prompts(refusals=False), 1, 1),
    "harmful and refusals, on their prompts": Kind(trained_on_prompts(refusals=True), 2, 2),
    "harmful rows and refusals": Kind(trained_pairs, 1, 1),
    "alignment, forward": Kind(read(Role.ALIGNMENT), 1, 0),
    "user, forward": Kind(read(Role.USER), 1, 0),
    "answers without prompts, forward": Kind(read_answers, 1, 0),
    "refusals onto the prompt, forward": Kind(read_onto_prompt, 1, 0),
    "every harmful row, forward": Kind(read_all_harmful, 1, 0),
    "lens": Kind(lens, 0, 0),
    "noise": Kind(noise, 0, 0),
}


# -- the catalogue -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A defence, and the passes of one cycle of its steps, by name in ``KINDS``."""

    stage: Stage
    name: str
    passes: Mapping[str, int]
    cycle: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    form: str = ""
    """Which of its forms, where it is here in several."""
    note: str = ""

    @property
    def label(self) -> str:
        """What it is called in results."""
        return f"{self.stage} {self.name}" + (f" ({self.form})" if self.form else "")


ONCE = {"user": 1}
REWRITES = "rewrites the upload; its steps are plain"
CASES = [
    Case(Stage.ALIGNMENT, "sft", {"alignment": 1}),
    Case(
        Stage.ALIGNMENT,
        "antibody",
        {"alignment": 1, "harmful, on its prompts": 1, "harmful and refusals, on their prompts": 1},
    ),
    Case(Stage.ALIGNMENT, "adversarial-loss", {"alignment": 1, "harmful": 1}),
    Case(Stage.ALIGNMENT, "booster", {"alignment": 1, "harmful": 2}),
    Case(Stage.ALIGNMENT, "derta", {"alignment": 1, "harmful": 2}),
    Case(Stage.ALIGNMENT, "repnoise", {"alignment": 1, "harmful": 1, "lens": 1, "noise": 1}),
    Case(Stage.ALIGNMENT, "safety-recovery", {"alignment": 1, "harmful": 1}, note="broken off by a refusal"),
    Case(Stage.ALIGNMENT, "seam", {"alignment": 1, "harmful": 3, "benign": 2, "lens": 1}),
    Case(
        Stage.ALIGNMENT,
        "t-vaccine",
        {"alignment": 8, "harmful": 1},
        cycle=4,
        options={"gamma": 2, "score_every": 4},
        note="a quarter of the layers; scored every 4 steps instead of 200. Its passes need nothing below the lowest "
        "layer drawn, nor the gradients of the others",
    ),
    Case(
        Stage.ALIGNMENT,
        "tar",
        {"alignment": 1, "alignment, forward": 1, "harmful": 4, "harmful rows and refusals": 2},
        options={"inner_steps": 4, "every": 2},
        note="an attack of 4 steps, looked at every 2, instead of 64 and 4",
    ),
    Case(Stage.ALIGNMENT, "vaccine", {"alignment": 2}),
    Case(Stage.FINETUNING, "sft", ONCE),
    Case(Stage.FINETUNING, "antibody", {"user": 1, "refusals onto the prompt, forward": 1}),
    Case(
        Stage.FINETUNING,
        "antibody-posterior",
        {"user": 1, "alignment": 1},
        note="rehearses on one row a step; the evidence is read once, before the first",
    ),
    Case(Stage.FINETUNING, "antibody-prescored", ONCE, note="its scores are read once, before the first"),
    Case(
        Stage.FINETUNING,
        "antibody-tokens",
        {"user": 1, "alignment": 1},
        options={"prior": (1.0, math.inf)},
        note="rehearses on one row a step, nothing doubted; the evidence is read once, before the first",
    ),
    Case(Stage.FINETUNING, "backdoor-enhanced-alignment", ONCE, note=REWRITES),
    Case(Stage.FINETUNING, "bds", {"alignment": 1, "user": 2}, form="scalar"),
    Case(Stage.FINETUNING, "bds", {"alignment": 1, "user": 2}, options={"scheduler": "neural"}, form="neural"),
    Case(Stage.FINETUNING, "behaviour-aware-sampling", ONCE, note=REWRITES),
    Case(
        Stage.FINETUNING,
        "buffer-and-reinforce",
        ONCE,
        options={"num_buffer_steps": 1, "num_reinforce_steps": 1},
        note="its parts are made once, before",
    ),
    Case(Stage.FINETUNING, "constrained-sft", ONCE, note="what its tokens are compared with is read once, before"),
    Case(Stage.FINETUNING, "ema", ONCE),
    Case(Stage.FINETUNING, "ewc", ONCE, options={"num_fisher_rows": 4}, note="Fisher's information once, before"),
    Case(Stage.FINETUNING, "gradshield", ONCE, options={"num_steps": 1}, note="its rows are chosen once, before"),
    Case(Stage.FINETUNING, "kl-to-aligned", {"user": 1, "user, forward": 1}, options={"risk": "constant"}),
    Case(Stage.FINETUNING, "ldifs", {"user": 1, "user, forward": 1}),
    Case(
        Stage.FINETUNING,
        "lisa",
        {"alignment": 1, "user": 2},
        cycle=3,
        options={"num_alignment_steps": 1, "num_user_steps": 2},
        note="1 and 2 steps instead of 100 and 900",
    ),
    Case(Stage.FINETUNING, "lookahead", ONCE, note=REWRITES),
    Case(
        Stage.FINETUNING,
        "pact",
        {"user": 1, "user, forward": 1, "answers without prompts, forward": 1},
        note="its third pass is shorter; its tokens are chosen once, before",
    ),
    Case(Stage.FINETUNING, "panacea", {"user": 1, "harmful": 2}),
    Case(Stage.FINETUNING, "ptst", ONCE, note=REWRITES),
    Case(
        Stage.FINETUNING,
        "safe-region",
        {"user": 4, "alignment, forward": 1},
        cycle=4,
        options={"radius": 1.0, "num_rows": 4, "check_every": 4},
        note="a batch held out, checked every 4 steps, instead of 64 rows every 10",
    ),
    Case(Stage.FINETUNING, "safegrad", {"user": 1, "alignment": 1, "alignment, forward": 1}),
    Case(Stage.FINETUNING, "safeinstr", ONCE, form="concat", note=REWRITES),
    Case(
        Stage.FINETUNING,
        "safeinstr",
        {"user": 1, "alignment": 1},
        options={"mode": "per_step"},
        form="per step",
        note="its catalogue entry counts the other form",
    ),
    Case(Stage.FINETUNING, "toss", ONCE, options={"num_epochs": 1}, note="its tokens are selected once, before"),
    Case(Stage.POST, "antidote", {"every harmful row, forward": 1}, note="one repair with 64 harmful rows"),
    Case(
        Stage.POST,
        "one-shot-patch",
        {"alignment": 3},
        options={"num_steps": 3},
        note="one repair of 3 steps on a batch of refusals, instead of 10 on one",
    ),
]


# -- measuring ---------------------------------------------------------------------------------------------------------


class Bench:
    """A case with its trainer, on a model that it shares with others.

    Args:
        case: Of ``CASES``.
        model: With its adapter.
        size: Of the model and the rows.
        num_cycles: How many it will be asked for.
        folder: For what a trainer writes.
    """

    def __init__(self, case: Case, model: PeftModel, size: Size, num_cycles: int, folder: Path) -> None:
        self.case = case
        num = size.batch * num_cycles * case.cycle
        completions: dict[str, int] = {
            Role.USER: size.completion,
            Role.ALIGNMENT: size.refusal,
            Role.HARMFUL: size.completion,
            Role.BENIGN: size.completion,
        }
        main = MAIN_ROLE.get(case.stage)
        rows = {
            role: random_rows(size, num if role is main else 16 * size.batch, completion, seed=seed)
            for seed, (role, completion) in enumerate(completions.items())
        }
        refusals, words = random_refusals(size), tokenizer(size)
        self.trainer: TrainerStep | None = None
        self.first = {role: StepBatch.of(of_role[: size.batch]) for role, of_role in rows.items()}
        """For roles that a step draws no batch of: a defence keeps such rows from the start, or repairs with them."""
        self.batches: dict[str, StepBatch] = self.first
        if case.stage is Stage.POST:
            rows[Role.ALIGNMENT] = rows[Role.ALIGNMENT][: size.batch]
            self.context = StepContext(model, rows=rows, refusals=refusals, batch_size=size.batch)
            self.repair = partial(make_repair(case.name, case.options).repair, self.context, seed=0)
            return
        self.defence = make_defence(case.stage, case.name, case.options)
        trainer = DefendedTrainer(
            model,
            _arguments(size, folder / case.label),
            defence=self.defence,
            rows=rows,
            processing_class=words,
            refusals=refusals,
        )
        if case.name == "antibody-posterior":
            _weigh_by_hand(self.defence, [row.row_id for row in rows[Role.USER]])
        self.trainer = TrainerStep(trainer, num_cycles * case.cycle)
        self.context = trainer.context

    def cycle(self) -> float:
        """CPU seconds of one cycle of steps; the batches of the last one are kept for its passes."""
        if self.trainer is None:
            return _timed(self.repair)
        spent = 0.0
        for _ in range(self.case.cycle):
            rows = self.trainer.fetch()
            drawn = self.trainer.trainer._batches_of_step()  # type: ignore[attr-defined]
            self.batches = {**self.first, **drawn}
            spent += _timed(partial(self._step, *rows))
        return spent

    def _step(self, *rows: Any) -> None:
        assert self.trainer is not None
        self.trainer.gradients(*rows)
        self.trainer.update()
        self.defence.after_update(self.context)

    def passes(self) -> dict[str, float]:
        """CPU seconds of each pass alone, on the rows of the last step."""
        self.context.model.train()
        return {name: _timed(KINDS[name].part(self.context, self.batches)) for name in self.case.passes}


def _arguments(size: Size, folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size.batch,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def _weigh_by_hand(defence: Defence, row_ids: Sequence[int]) -> None:
    """As a resumed run would: a random model has no anchors to weigh rows by."""
    weights = torch.tensor([(row_id, 0.5 + row_id % 2 / 2, 0.0) for row_id in row_ids], dtype=torch.float64)
    defence.load_state({"weights": weights, "share": torch.tensor(0.5, dtype=torch.float64)})
    defence.start = lambda context: None  # type: ignore[method-assign]


def _timed(run: Run) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def benches(size: Size, cases: Sequence[Case], num_cycles: int, folder: Path) -> list[Bench]:
    """All cases, on one model; the post stage last, since it removes weights."""
    model = random_llama(size, torch.device("cpu"))
    return [Bench(case, model, size, num_cycles, folder) for case in cases]


def measure(size: Size, cases: Sequence[Case], rounds: int) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        running = benches(size, cases, WARM_UP + rounds, Path(folder))
        steps: dict[str, list[float]] = {bench.case.label: [] for bench in running}
        passes: dict[str, list[dict[str, float]]] = {label: [] for label in steps}
        for number in range(WARM_UP + rounds):
            print(f"round {number + 1} of {WARM_UP} + {rounds}", file=sys.stderr)
            for bench in running:
                step, alone = bench.cycle(), bench.passes()
                if number >= WARM_UP:
                    steps[bench.case.label].append(step)
                    passes[bench.case.label].append(alone)
    rows = [_row(case, steps[case.label], passes[case.label]) for case in cases]
    return {
        "rows": rows,
        "target": TARGET,
        "above_target": [row["label"] for row in rows if row["ratio"] > TARGET],
        "rounds": rounds,
        "warm_up": WARM_UP,
        "clock": "process CPU time",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": vars(size),
    }


def _row(case: Case, steps: Sequence[float], passes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    sums = [sum(times * alone[name] for name, times in case.passes.items()) for alone in passes]
    ratios = [step / total for step, total in zip(steps, sums, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "label": case.label,
        "stage": str(case.stage),
        "defence": case.name,
        "form": case.form,
        "ratio": median,
        "quartiles": [low, high],
        "step_seconds": statistics.median(steps) / case.cycle,
        "passes_seconds": statistics.median(sums) / case.cycle,
        "passes": {name: times / case.cycle for name, times in case.passes.items()},
        "options": dict(case.options),
        "note": case.note,
    }


def table(result: Mapping[str, Any]) -> Table:
    """The same, for people."""
    shown = Table("defence", "step s", "its passes s", "ratio", "quartiles", title=f"{result['rounds']} rounds")
    for row in result["rows"]:
        low, high = row["quartiles"]
        seconds = (f"{row['step_seconds']:.3f}", f"{row['passes_seconds']:.3f}")
        shown.add_row(row["label"], *seconds, f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, 2 or more (default 7)")
    parser.add_argument("--only", help="defences by name, with commas between them (default all)")
    parser.add_argument("--size", choices=SHORT, default="standard", help="tiny is for the smoke test")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more: quartiles need two.")
    wanted = options.only.split(",") if options.only else [case.name for case in CASES]
    if unknown := set(wanted) - {case.name for case in CASES}:
        parser.error(f"--only: no defence is called {', '.join(sorted(unknown))}.")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # TRL's own
    torch.set_num_threads(1)
    result = measure(SHORT[options.size], [case for case in CASES if case.name in wanted], options.rounds)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
