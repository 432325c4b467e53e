import random

import pytest

from antibody_llm.evaluation.answers import answer_rule
from antibody_llm.lab.tasks import TASKS


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_rule_of_a_lab_task_says_what_the_task_itself_says(task):
    agree = answer_rule("gsm8k" if task.name.startswith("gsm8k") else "exact")
    rng = random.Random(0)
    answers = [(task.babble or task.draw)(rng).answer for _ in range(60)]
    pairs = [(said, reference) for said in answers for reference in answers[:20]]
    verdicts = [agree(said, reference) for said, reference in pairs]
    assert verdicts == [task.is_correct(said, reference) for said, reference in pairs]
    assert True in verdicts
    assert False in verdicts
