"""Runs every defence of the catalogue on this rank of two, and saves the weights it ends with.

python -m torch.distributed.run --nproc_per_node 2 tests/defences/two_ranks.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_defence
from antibody_llm.events import StepDone, Stopped, Wish, listening
from antibody_llm.training.checkpoints import newest_checkpoint
from tests.defences.cases import ACTIVE, TRAINED
from tests.training.helpers import trainer, weights

SETTINGS = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
GRIDS = {"2x8": (8, 1), "2x4x2": (4, 2)}
STOPPED = (Stage.FINETUNING, "ema"), "2x4x2"
"""Of the run that is asked to stop: its state lives through the run."""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for stage, name in TRAINED:
        for grid, (size, accumulation) in GRIDS.items():
            run = trainer(
                folder / "run",
                make_defence(stage, name, ACTIVE[stage, name]),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                ddp_backend="gloo",
                **SETTINGS,
            )
            run.train()
            if os.environ["RANK"] == "0":
                result = {"weights": weights(run), "rows": run.row_log.columns(), "logs": run.state.log_history}
                torch.save(result, folder / f"{stage}-{name}-{grid}.pt")
    assert set(ACTIVE) <= set(CATALOGUE)
    _stop_and_go_on(folder)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's C++ threads now and then abort the interpreter's own end, after all is saved


def _stop_and_go_on(folder: Path) -> None:
    """The first rank alone hears that a step is done, and asks to stop; both must end there, or one waits forever."""
    (stage, name), grid = STOPPED
    size, accumulation = GRIDS[grid]
    given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "ddp_backend": "gloo"}
    whole, *parts = (
        trainer(folder / place, make_defence(stage, name, ACTIVE[stage, name]), **given, **SETTINGS)
        for place in ("whole", "parts", "parts")
    )
    whole.train()
    ended = None
    try:
        with listening(lambda event: Wish.STOP if isinstance(event, StepDone) and event.step == 2 else None):
            parts[0].train()
    except Stopped as stopped:
        ended = stopped.step
    parts[1].train(resume_from_checkpoint=newest_checkpoint(folder / "parts"))
    report = {"step": ended, "same": all(torch.equal(v, weights(parts[1])[k]) for k, v in weights(whole).items())}
    (folder / f"stopped-{os.environ['RANK']}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
