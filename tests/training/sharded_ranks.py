"""What two ranks find out about sharded models, as JSON.

python -m torch.distributed.run --nproc_per_node 2 -m tests.training.sharded_ranks FOLDER
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import AntibodyError
from antibody_llm.training import sharding
from tests.defences.cases import TRAINED
from tests.training.sharded import Case, Loop, differences, held, model_of, resumed, shard

SFT, EMA = (Stage.FINETUNING, "sft", "full"), (Stage.FINETUNING, "ema", "full")
REFUSED = [key for key in TRAINED if make_defence(*key).whole_weights]
EXACT: list[Case] = [
    *((stage, name, "full") for stage, name in TRAINED if (stage, name) not in REFUSED),
    *((Stage.ALIGNMENT, name, "lora") for name in ("antibody", "repnoise", "t-vaccine")),
    *((Stage.FINETUNING, name, "lora") for name in ("antibody-posterior", "bds")),
    *((stage, "antibody", "checkpointing") for stage in (Stage.ALIGNMENT, Stage.FINETUNING)),
]
RESUMED: list[Case] = [EMA, (Stage.FINETUNING, "bds", "lora"), (Stage.FINETUNING, "lisa", "full")]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    found = {
        "differences": differences(EXACT),
        "resumed": {" ".join(case): resumed(case, _made(folder / case[1])) for case in RESUMED},
        "held": held(EMA),
        "refused": {" ".join(key): said(lambda key=key: _loop((*key, "full")).start()) for key in REFUSED},
        "wrong gradient": said(_check_of_gradients_that_are_not_multiplied),
        "lost perturbation": said(_check_of_weights_that_stay_gathered),
        "adapter afterwards": said(_adapter_on_a_sharded_model),
    }
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's C++ threads now and then abort the interpreter's own end, after all is saved


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _loop(case: Case) -> Loop:
    return Loop(case, shard(model_of(case[2])), num_ranks=dist.get_world_size(), rank=dist.get_rank())


def said(act: Callable[[], object]) -> str:
    """The message of the user's error that every rank meets, or what else there was."""
    try:
        act()
    except AntibodyError as error:
        return str(error)
    return "nothing was said"


def _check_of_gradients_that_are_not_multiplied() -> None:
    with patch.object(sharding, "_num_ranks", lambda parameter: 1):
        _loop(SFT).start()


def _check_of_weights_that_stay_gathered() -> None:
    with patch.object(FSDPModule, "set_reshard_after_forward", lambda *args, **kwargs: None):
        _loop(SFT).start()


def _adapter_on_a_sharded_model() -> None:
    from antibody_llm.models.adapters import add_lora
    from antibody_llm.training.step import StepContext

    StepContext(add_lora(shard(model_of("full")), r=4, targets=["q_proj"], seed=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
