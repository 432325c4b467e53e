"""What two ranks find out about sharded models, as JSON.

python -m torch.distributed.run --nproc_per_node 2 -m tests.training.sharded_ranks FOLDER
"""

import json
import os
import signal
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
from antibody_llm.models.adapters import add_lora, trainable_parameters
from antibody_llm.models.saving import save_model
from antibody_llm.training import sharding
from antibody_llm.training.step import StepContext
from antibody_llm.training.trainer import DefendedTrainer
from tests.defences.cases import ACTIVE, TRAINED
from tests.tinylm import tiny_tokenizer
from tests.training.helpers import trainer
from tests.training.sharded import Case, Loop, differences, held, model_of, resumed, shard, sharding_trainers

SFT, EMA = (Stage.FINETUNING, "sft", "full"), (Stage.FINETUNING, "ema", "full")
REFUSED = [key for key in TRAINED if make_defence(*key).whole_weights]
EXACT: list[Case] = [
    *((stage, name, "full") for stage, name in TRAINED if (stage, name) not in REFUSED),
    *((Stage.ALIGNMENT, name, "lora") for name in ("antibody", "repnoise", "t-vaccine")),
    *((Stage.FINETUNING, name, "lora") for name in ("antibody-posterior", "bds")),
    *((stage, "antibody", kind) for stage in (Stage.ALIGNMENT, Stage.FINETUNING) for kind in ("checkpointing", "bf16")),
    (Stage.ALIGNMENT, "antibody", "tied"),
    (Stage.FINETUNING, "bds", "tied"),
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
    found["trainer resumed"] = _trained(folder)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.barrier()
    _left_alone(folder)


def _left_alone(folder: Path) -> None:
    """The second rank is killed in its second step; what the first one says goes to ``left_alone.txt``."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would end the first one before it has written
    run = trainer(folder / "left_alone", make_defence(*SFT[:2]), ddp_backend="gloo", **SETTINGS)
    if dist.get_rank() == 1:
        run.context.model.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if run.state.global_step == 1 else None
        )
    (folder / "left_alone.txt").write_text(said(run.train))
    os._exit(0)


SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 3,
    "lr_scheduler_type": "constant",
}
TRAINED_BY_TRAINER = dict.fromkeys(("full", "lora"), (Stage.FINETUNING, "ema"))


def _trained(folder: Path) -> dict[str, bool]:
    """Train, save and resume by the Trainer; whether the resumed run ended with the same bits on the first rank."""
    same = {}
    for kind, key in TRAINED_BY_TRAINER.items():

        def trained(place: str, kind: str = kind, key: tuple[Stage, str] = key, **settings: object) -> DefendedTrainer:
            defence, resume = make_defence(*key, ACTIVE[key]), settings.pop("resume", None)
            settings |= SETTINGS | {"ddp_backend": "gloo", "lora": kind == "lora"}
            with sharding_trainers():
                run = trainer(folder / kind / place, defence, **settings)
            run.train(resume_from_checkpoint=resume)
            return run

        run = trained("whole", save_strategy="steps", save_steps=1)
        again = trained("again", resume=folder / kind / "whole" / "checkpoint-2")
        if dist.get_rank() == 0:
            ended, resumed = (trainable_parameters(x.context.model) for x in (run, again))
            same[kind] = all(torch.equal(value, resumed[name]) for name, value in ended.items())
            if kind == "full":
                save_model(run.context.model, folder / "saved", tokenizer=tiny_tokenizer())
            else:
                run.context.model.save_pretrained(folder / "saved_adapter")
        dist.barrier()
    return same


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
    StepContext(add_lora(shard(model_of("full")), r=4, targets=["q_proj"], seed=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
