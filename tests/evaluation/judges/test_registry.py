import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.evaluation.judges.registry import JUDGES, make_judge


@pytest.mark.parametrize("name", list(JUDGES))
def test_every_judge_is_made_by_its_name_and_says_what_it_can_tell(name):
    judge = make_judge(name)
    assert judge.verdicts
    assert judge.name.isidentifier()  # it becomes a column


def test_an_unknown_judge_offers_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'keywords'"):
        make_judge("keyword")


def test_names_of_judges_are_distinct():
    names = [make_judge(name).name for name in JUDGES]
    assert len(set(names)) == len(names)
