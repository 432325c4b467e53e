"""A claim that is kept: by its renewals, and no longer than they come through."""

import threading
import time
from types import SimpleNamespace

import pytest

from antibody_llm.server.claims import Claimed, LeaseLost, Orders
from antibody_llm.server.working.held import Held

LEASE = 0.8


class Shelf:
    """A queue whose renewals do as a function says."""

    lease = LEASE

    def __init__(self, renew):
        self.renewed, self._renew = 0, renew

    def renew(self, claimed):
        self._renew()
        self.renewed += 1
        return Orders(pause=False, lease_until=0.0)


class Stage:
    """A process that notes when it was killed."""

    def __init__(self):
        self.killed_at = None

    def stop(self): ...

    def kill(self):
        self.killed_at = self.killed_at or time.monotonic()


def held(renew, **more):
    claimed = Claimed(SimpleNamespace(id="ftjob-1"), 1, "w")
    return Held(Shelf(renew), claimed, threading.Event(), **more)


def away():
    raise ConnectionError("the database is away")


def hanging():
    time.sleep(3 * LEASE)


@pytest.mark.parametrize("renew", [away, hanging])
def test_a_worker_whose_renewals_do_not_come_through_ends_its_stage_before_another_can_begin_the_job(renew):
    asked, stage = time.monotonic(), Stage()
    with held(renew, since=asked) as claim, claim.running(stage):
        while stage.killed_at is None and time.monotonic() < asked + 2 * LEASE:
            time.sleep(0.01)
        assert stage.killed_at is not None
        assert stage.killed_at - asked < LEASE
        with pytest.raises(LeaseLost, match="no renewal came through"):
            claim.check()


def test_a_claim_is_kept_as_long_as_it_is_renewed():
    stage = Stage()
    with held(lambda: None) as claim, claim.running(stage):
        time.sleep(1.5 * LEASE)
        claim.check()
    assert stage.killed_at is None
    assert claim.queue.renewed >= 3


def test_a_claim_that_was_slow_to_arrive_counts_from_when_it_was_asked_for():
    with held(lambda: time.sleep(0.3), since=time.monotonic() - LEASE) as claim, claim.running(stage := Stage()):
        time.sleep(0.3)
    assert stage.killed_at is not None
