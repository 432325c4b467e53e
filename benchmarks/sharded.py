"""What sharding changes: the gradients of every defence, a run that is killed, and what a rank holds.

    python benchmarks/sharded.py --ranks 4 --output benchmarks/results/sharded.json

On CPUs (gloo), on a two-layer Llama that is sharded as ``accelerate launch`` with FSDP2 shards it.

    gradients   |a - b| / |b| of a step's gradient, a over the ranks and b on one process from the same weights; the
                largest over two steps, and over the weights after ``finish``. All weights trained ("full"), an adapter
                ("lora"), all weights with gradient checkpointing ("checkpointing")
    killed      a run of AdamW that saves after every step. One rank ends itself with SIGKILL in its third step; the
                others must end, and the same run started again must end with the bits of one that nobody disturbed
    held        bytes of a rank over those of one process: parameters, gradients, the optimiser's state, and the
                defence's
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
KINDS = ("full", "lora", "checkpointing")
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
NUM_STEPS, DIES_IN = 4, 2


def gradients(folder: Path) -> dict[str, Any]:
    """The largest difference of every defence that parts of weights will do for, and why the others are refused."""
    needs = {key: make_defence(*key).whole_weights for key in TRAINED}
    cases = [(*key, kind) for key in TRAINED if needs[key] is None for kind in KINDS]
    found = {name: max(numbers) for name, numbers in differences(cases).items()}
    return {
        "gradients": {" ".join(case): found[" ".join(case)] for case in cases},
        "refused": {" ".join(key): why for key, why in needs.items() if why is not None},
    }


def undisturbed(folder: Path) -> None:
    """Run every case to its end."""
    for case in KILLED:
        _run(case, folder / "undisturbed" / case[1])


def killed(folder: Path) -> None:
    """Run the case that ``folder`` names until a rank dies, or from its latest checkpoint."""
    case = KILLED[int((folder / "case").read_text())]
    _run(case, folder / "killed" / case[1])


def memory(folder: Path) -> dict[str, Any]:
    """Bytes of a rank over those of one process, the largest of all ranks."""
    found = {}
    for case in HELD:
        shares: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, held(case))
        found[" ".join(case)] = {name: max(share[name] for share in shares) for name in shares[0]}
    return {"held": found}


def _run(case: Case, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model, rank = shard(model_of(case[2])), dist.get_rank()
    loop = Loop(case, model, num_ranks=dist.get_world_size(), rank=rank, optimiser=torch.optim.AdamW)
    done = len([*folder.glob("step-*")])
    if done:
        loop.defence.check(loop.context)
        load(loop, folder / f"step-{done}")
    else:
        loop.start()
    for number in range(done, NUM_STEPS):
        dies = folder.parent.name == "killed" and not done and number == DIES_IN and rank == dist.get_world_size() - 1
        if dies:
            loop.context.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        loop.step(number)
        save(loop, folder / f"saving-{number + 1}")
        if rank == 0:
            (folder / f"saving-{number + 1}").rename(folder / f"step-{number + 1}")
        dist.barrier()
    loop.defence.finish(loop.context)
    weights = loop.weights()
    if rank == 0:
        torch.save(weights, folder / "weights.pt")


PHASES = {phase.__name__: phase for phase in (gradients, undisturbed, killed, memory)}


def launch(ranks: int, phase: str, folder: Path) -> int:
    """Run a phase on all ranks; returns the exit code."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", __file__]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [*command, "--phase", phase, "--output", str(folder)], env=os.environ | {"PYTHONPATH": paths}, check=False
    ).returncode


def measured(ranks: int, folder: Path) -> dict[str, Any]:
    """Everything, phase by phase."""
    found: dict[str, Any] = {"ranks": ranks, "torch": torch.__version__.partition("+")[0]}
    for phase in ("gradients", "memory", "undisturbed"):
        if launch(ranks, phase, folder):
            raise SystemExit(f"{phase}: a rank failed")
        if (folder / f"{phase}.json").is_file():
            found |= json.loads((folder / f"{phase}.json").read_text())
    found["killed"] = {}
    for number, case in enumerate(KILLED):
        (folder / "case").write_text(str(number))
        codes = [launch(ranks, "killed", folder), launch(ranks, "killed", folder)]
        ends = [torch.load(folder / place / case[1] / "weights.pt") for place in ("undisturbed", "killed")]
        died_and_went_on = codes[0] != 0 and codes[1] == 0
        found["killed"][" ".join(case)] = {"died_and_went_on": died_and_went_on, "same_bits": torch.equal(*ends)}
    return found


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
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    result = PHASES[given.phase](given.output)
    if result is not None and dist.get_rank() == 0:
        (given.output / f"{given.phase}.json").write_text(json.dumps(result))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's C++ threads now and then abort the interpreter's own end, after all is saved


if __name__ == "__main__":
    main()
