"""What sharding changes: the gradients of every defence, a run that is killed, and what a rank holds.

    python benchmarks/sharded.py --ranks 4 --output benchmarks/results/sharded.json

On CPUs (gloo), on a two-layer Llama that is sharded as ``accelerate launch`` with FSDP2 shards it.

    gradients   |a - b| / |b| of a step's gradient, a over the ranks and b on one process from the same weights; the
                largest over two steps, and over the weights after ``finish``. All weights trained ("full"), an adapter
                ("lora"), all weights with gradient checkpointing ("checkpointing")
    held        bytes of a rank over those of one process, the largest of all ranks: parameters, gradients, the
                optimiser's state, and the defence's
    killed      runs of AdamW that save after two of their four steps and take a third one; in that of the last run a
                rank ends itself with SIGKILL in the middle of a pass. The launch must end, and another one that goes
                on from the checkpoints must end with the bits of runs that nobody disturbed
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.defences.cases import TRAINED
from tests.training.sharded import Case, Loop, differences, held, load, model_of, save, shard

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTED = ("sft", "antibody", "repnoise", "t-vaccine")
KILLED: list[Case] = [
    (Stage.ALIGNMENT, "antibody", "full"),
    (Stage.ALIGNMENT, "tar", "lora"),
    (Stage.FINETUNING, "bds", "full"),
    (Stage.FINETUNING, "ema", "lora"),
    (Stage.FINETUNING, "panacea", "full"),
    (Stage.FINETUNING, "safe-region", "full"),
]
HELD: list[Case] = [
    (Stage.FINETUNING, "ema", "full"),
    (Stage.FINETUNING, "bds", "full"),
    (Stage.ALIGNMENT, "tar", "full"),
]
NUM_STEPS, NUM_SAVED = 4, 2


def undisturbed(folder: Path) -> None:
    """Measure, and run every case to its end."""
    needs = {key: make_defence(*key).whole_weights for key in TRAINED}
    cases = [(*key, kind) for key in TRAINED if needs[key] is None for kind in ("full", "lora")]
    cases += [(*key, "checkpointing") for key in TRAINED if key[1] in CHECKPOINTED]
    found = differences(cases)
    result: dict[str, Any] = {
        "gradients": {" ".join(case): max(found[" ".join(case)]) for case in cases},
        "refused": {" ".join(key): why for key, why in needs.items() if why is not None},
        "held": {" ".join(case): _held(case) for case in HELD},
    }
    for case in KILLED:
        loop = _loop(case)
        loop.start()
        _go_on(loop, range(NUM_STEPS))
        _keep(loop, folder / f"{case[1]}.undisturbed")
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(result))


def killed(folder: Path) -> None:
    """Save every case, go on with it, and die."""
    for case in KILLED:
        loop = _loop(case)
        loop.start()
        _go_on(loop, range(NUM_SAVED))
        save(loop, folder / case[1])
        if case == KILLED[-1] and dist.get_rank() == dist.get_world_size() - 1:
            loop.context.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        loop.step(NUM_SAVED)


def resumed(folder: Path) -> None:
    """Go on with every case where it was saved."""
    for case in KILLED:
        loop = _loop(case)
        loop.defence.check(loop.context)
        load(loop, folder / case[1])
        _go_on(loop, range(NUM_SAVED, NUM_STEPS))
        _keep(loop, folder / f"{case[1]}.resumed")


def _loop(case: Case) -> Loop:
    model = shard(model_of(case[2]))
    return Loop(case, model, num_ranks=dist.get_world_size(), rank=dist.get_rank(), optimiser=torch.optim.AdamW)


def _go_on(loop: Loop, steps: range) -> None:
    for number in steps:
        loop.step(number)
    if steps.stop == NUM_STEPS:
        loop.defence.finish(loop.context)


def _keep(loop: Loop, file: Path) -> None:
    weights = loop.weights()
    if dist.get_rank() == 0:
        torch.save(weights, file)


def _held(case: Case) -> dict[str, float]:
    shares: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, held(case))
    return {name: max(share[name] for share in shares) for name in shares[0]}


PHASES = {phase.__name__: phase for phase in (undisturbed, killed, resumed)}


def launch(ranks: int, phase: str, folder: Path) -> int:
    """Run a phase on all ranks; returns the exit code."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", __file__]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [*command, "--phase", phase, "--output", str(folder)], env=os.environ | {"PYTHONPATH": paths}, check=False
    ).returncode


def measured(ranks: int, folder: Path) -> dict[str, Any]:
    """Everything, launch by launch."""
    codes = {phase: launch(ranks, phase, folder) for phase in PHASES}
    if codes["undisturbed"] or codes["resumed"]:
        raise SystemExit(f"a rank failed: exit codes {codes}")
    found = json.loads((folder / "found.json").read_text())
    ends = {
        " ".join(case): torch.equal(*(torch.load(folder / f"{case[1]}.{how}") for how in ("undisturbed", "resumed")))
        for case in KILLED
    }
    return {
        "ranks": ranks,
        "torch": torch.__version__.partition("+")[0],
        **found,
        "killed": {"launch_ended": codes["killed"] != 0, "same_bits": ends},
    }


def main() -> None:
    """Parse, and launch or take part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase is None:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(given.ranks, Path(folder))
        given.output.write_text(json.dumps(found, indent=1) + "\n")
        return
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    PHASES[given.phase](given.output)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's C++ threads now and then abort the interpreter's own end, after all is saved


if __name__ == "__main__":
    main()
