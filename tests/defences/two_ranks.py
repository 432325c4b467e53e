"""Runs every defence of the catalogue on this rank of two, and saves the weights it ends with.

python -m torch.distributed.run --nproc_per_node 2 tests/defences/two_ranks.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from antibody_llm.defences.catalogue import CATALOGUE, make_defence
from tests.defences.cases import ACTIVE, TRAINED
from tests.training.helpers import trainer, weights

SETTINGS = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
GRIDS = {"2x8": (8, 1), "2x4x2": (4, 2)}


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
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch's C++ threads now and then abort the interpreter's own end, after all is saved


if __name__ == "__main__":
    main(Path(sys.argv[1]))
