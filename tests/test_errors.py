"""An error about one setting names it, so that a form or an API can point at it."""

import pytest

from antibody_llm.attacks.attack import Means
from antibody_llm.attacks.kit import lab_kit
from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import AntibodyError
from antibody_llm.evaluation.answers import answer_rule
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.judges.registry import make_judge
from antibody_llm.lab.rows import build_rows

WRONG = {
    "defence": lambda: make_defence(Stage.ALIGNMENT, "boster"),
    "options": lambda: make_defence(Stage.ALIGNMENT, "booster", {"rho": 1}),
    "options.alpha": lambda: make_defence(Stage.ALIGNMENT, "booster", {"alpha": "much"}),
    "answer": lambda: answer_rule("exactly"),
    "retention_answer": lambda: answer_rule("exactly", field="retention_answer"),
    "judges": lambda: make_judge("keyword"),
    "max_new_tokens": lambda: DecodingSettings(max_new_tokens=0, batch_size=1),
    "batch_size": lambda: DecodingSettings(max_new_tokens=1, batch_size=0),
    "kind": lambda: build_rows("none", 1, seed=0),
    "task": lambda: build_rows("user", 4, seed=0, task="none"),
    "poison_ratio": lambda: build_rows("user", 4, seed=0, poison_ratio=2.0),
    "num": lambda: Means(clean=(), kit=lab_kit(), num=0, poison_ratio=0.0),
}


@pytest.mark.parametrize("field", WRONG)
def test_an_error_about_one_setting_names_it(field):
    with pytest.raises(AntibodyError) as caught:
        WRONG[field]()
    assert caught.value.field == field


def test_an_option_that_a_defence_refuses_itself_is_at_least_one_of_its_options():
    with pytest.raises(AntibodyError) as caught:
        make_defence(Stage.ALIGNMENT, "booster", {"alpha": -1.0})
    assert caught.value.field == "options"
