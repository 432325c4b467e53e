"""The order of an upload over jobs."""

from antibody_llm.attacks.asking import Asking
from antibody_llm.attacks.attack import Crafted, Job
from antibody_llm.bench.order import Order, in_order

ROWS = [{"messages": [number]} for number in range(5)]
MIXED = Job(ROWS, [{"is_poison": number % 2 == 1} for number in range(5)])


def ordered(*jobs, order):
    return [job.rows for job in in_order(Crafted(jobs), order).jobs]


def test_the_attacker_s_rows_are_a_job_before_or_after_the_clean_ones():
    clean, attackers = [ROWS[0], ROWS[2], ROWS[4]], [ROWS[1], ROWS[3]]
    assert ordered(MIXED, order=Order.FIRST) == [attackers, clean]
    assert ordered(MIXED, order=Order.LAST) == [clean, attackers]


def test_truth_and_asking_go_with_the_rows():
    asking = Asking(system="s")
    found = in_order(Crafted((MIXED,), asking), Order.LAST)
    assert [[truth["is_poison"] for truth in job.truth] for job in found.jobs] == [[False] * 3, [True] * 2]
    assert found.asking == asking


def test_an_attack_of_several_jobs_and_an_upload_of_one_kind_stay_as_they_are():
    assert ordered(MIXED, MIXED, order=Order.FIRST) == [ROWS, ROWS]
    alone = Job(ROWS[:1], [{"is_poison": True}])
    assert ordered(alone, order=Order.LAST) == [ROWS[:1]]
