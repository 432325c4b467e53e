"""Every defence of the catalogue, through its verb, on rows of the lab."""

import math

import pytest

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE
from antibody_llm.lab.rows import build_rows
from antibody_llm.runs import align, evaluate, finetune
from tests.defences.cases import ACTIVE, IDS, TRAINED

VERBS = {Stage.ALIGNMENT: align, Stage.FINETUNING: finetune}
UPLOAD = {Stage.ALIGNMENT: {}, Stage.FINETUNING: {"data": build_rows("user", 32, seed=0).rows}}
PROVIDER = {f"{kind}_data": build_rows(kind, 64, seed=0).rows for kind in ("alignment", "harmful", "benign")}


@pytest.mark.parametrize(("stage", "name"), TRAINED, ids=IDS)
def test_a_defence_trains_through_its_verb_and_its_model_can_be_evaluated(tmp_path, stage, name):
    defence = CATALOGUE[stage, name]
    run = VERBS[stage](
        "lab-aligned" if defence.needs_base or defence.needs_anchors else "lab",
        output=tmp_path / "run",
        defence=name,
        options=ACTIVE[stage, name],
        training={"max_steps": 2},
        **UPLOAD[stage],
        **PROVIDER,
    )
    assert run.num_steps == 2
    assert math.isfinite(run.metrics["loss"])
    assert evaluate(run.output, output=tmp_path / "measured", num=2, max_new_tokens=4).num_rows == 8
