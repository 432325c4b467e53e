import pytest
from hypothesis import given
from hypothesis import strategies as st

from antibody_llm.training.batches import Grid, RoleStream, StepLoader, StepSampler
from tests.tinylm import random_rows


@given(num_rows=st.integers(1, 70), size=st.integers(1, 5), accumulation=st.integers(1, 4), num_ranks=st.integers(1, 3))
def test_every_row_is_counted_once_and_every_rank_makes_as_many_passes(num_rows, size, accumulation, num_ranks):
    grids = [Grid(size, accumulation, num_ranks, rank) for rank in range(num_ranks)]
    num_rows = min(num_rows, grids[0].step_size)
    cuts = [grid.cut(num_rows) for grid in grids]
    assert {len(cut) for cut in cuts} == {grids[0].num_micro_batches(num_rows)}
    assert all(micro for cut in cuts for micro in cut)
    counted = sorted(position for cut in cuts for micro in cut for position, counts in micro if counts)
    assert counted == list(range(num_rows))


@pytest.mark.parametrize("grid", [Grid(16), Grid(4, 4), Grid(2, 8)])
def test_the_steps_of_an_epoch_hold_the_same_rows_however_they_are_cut(grid):
    def steps(grid):
        sampler = StepSampler(37, grid, seed=3)
        slots = list(sampler)
        assert len(slots) == len(sampler)
        flat = [slot.index for micro in slots for slot in micro if slot.counted]
        return [flat[i : i + 16] for i in range(0, len(flat), 16)]

    assert steps(grid) == steps(Grid(16))
    assert sorted(sum(steps(grid), [])) == list(range(37))


def test_the_ranks_of_a_step_see_disjoint_rows_that_make_up_the_step():
    whole = [row.row_id for micro in StepLoader(random_rows(16), Grid(16), 1) for row in micro.rows]
    parts = [
        [row.row_id for micro in StepLoader(random_rows(16), Grid(4, 2, 2, rank), 1) for row in micro.rows]
        for rank in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_epochs_are_shuffled_differently_and_the_same_seed_repeats_them():
    sampler = StepSampler(20, Grid(4), seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_a_role_stream_visits_every_row_once_a_pass_and_depends_on_the_step_alone():
    rows = random_rows(6)
    stream = RoleStream("harmful", rows, Grid(4), seed=0, size=4)
    seen = [row.row_id for step in range(3) for row, _ in stream.at(step).rows()]
    assert sorted(seen[:6]) == list(range(6))
    assert sorted(seen[6:12]) == list(range(6))
    assert stream.at(1) == RoleStream("harmful", rows, Grid(4), seed=0, size=4).at(1)
    assert [row for row, _ in RoleStream("harmful", rows, Grid(2, 2), seed=0, size=4).at(1).rows()] == [
        row for row, _ in stream.at(1).rows()
    ]
