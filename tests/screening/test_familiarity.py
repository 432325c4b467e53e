import pytest
import torch
from tests.tinylm import random_refusals, tiny_llama
from tests.training.helpers import anchor_rows, made_anchors
from torch.testing import assert_close

from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.screening.anchors import make_anchors, read_anchors, write_anchors
from antibody_llm.screening.evidence import BEFORE, NOW, EvidenceKind
from antibody_llm.screening.familiarity import HONEST, fit_familiarity, fit_shape, held_out_distances, read_familiarity
from antibody_llm.screening.probe import SHRINKAGE
from antibody_llm.screening.reading import collect
from antibody_llm.screening.states import normalised, states

NUM_HARMFUL = 30


def changes(num=80, seed=0):
    """[num, 2, 12]: two clouds, one along the first axis of the other."""
    drawn = torch.randn(num, 2, 12, generator=torch.Generator().manual_seed(seed))
    drawn[:NUM_HARMFUL, 0, 0] += 6
    return drawn


def covariance(change):
    flat = change.flatten(1).double()
    parts = [part - part.mean(dim=0) for part in (flat[:NUM_HARMFUL], flat[NUM_HARMFUL:])]
    x = torch.cat(parts)
    pooled = x.T @ x / (len(x) - 2)
    return (1 - SHRINKAGE) * pooled + SHRINKAGE * pooled.diagonal().mean() * torch.eye(pooled.shape[0]).double()


@pytest.mark.parametrize("num", [34, 80])  # fewer rows than the 24 dimensions need, and more
def test_a_distance_is_that_to_the_nearer_mean_by_the_shrunk_covariance(num):
    change = changes(num)
    away = changes(seed=1)[:9] * 3
    inverse = torch.linalg.inv(covariance(change))
    flat = change.flatten(1).double()
    squared = []
    for mean in (flat[:NUM_HARMFUL].mean(dim=0), flat[NUM_HARMFUL:].mean(dim=0)):
        apart = away.flatten(1).double() - mean
        squared.append(((apart @ inverse) * apart).sum(dim=1))
    expected = torch.stack(squared).amin(dim=0).sqrt()
    assert_close(fit_shape(change, NUM_HARMFUL).distance(away).double(), expected, rtol=1e-3, atol=1e-3)


def test_a_held_out_distance_does_not_know_its_row():
    change = changes()
    before = held_out_distances(change, NUM_HARMFUL)
    change[3] *= 50
    after = held_out_distances(change, NUM_HARMFUL)
    assert after[3] > 20 * before[3]  # were it in the shape, the shape would stretch to it
    assert before.mean() > fit_shape(changes(), NUM_HARMFUL).distance(changes()).mean()


class Steep:
    """Lam = 10 (e - 1/2)."""

    def __call__(self, scores):
        return 10 * (scores.double() - 0.5)


@pytest.fixture(scope="module")
def ground():
    shifts = torch.cat([torch.linspace(0.8, 1.2, NUM_HARMFUL), torch.linspace(-0.2, 0.2, 50)])
    return fit_familiarity(changes(), NUM_HARMFUL, shifts, Steep())


@pytest.mark.parametrize(
    ("evidence", "distance", "unfamiliar"),
    [
        (0.7, 1.01, True),  # far, and neither: harm that clear would be as clear as the anchors'
        (0.7, 0.99, False),  # near
        (0.0, 9.0, False),  # reads as benign, however far
        (0.9, 1.01, False),  # reads as harmful as the anchors do
        (0.9, 9.0, True),  # ... for which it is too far
        (30.0, 9.0, False),  # ... unless it is far along the direction itself
    ],
)
def test_a_row_is_unfamiliar_if_its_evidence_may_come_of_its_distance(ground, evidence, distance, unfamiliar):
    away = torch.tensor([distance * (ground.near if distance < 2 else ground.far)])
    assert ground.unfamiliar(torch.tensor([evidence]), away).tolist() == [unfamiliar]


def test_at_most_the_stated_share_of_honest_harmful_anchors_is_unfamiliar(ground):
    shifts = torch.cat([torch.linspace(0.5, 0.7, NUM_HARMFUL), torch.zeros(50)])  # of every one the evidence is weak
    flagged = ground.unfamiliar(shifts, ground.held_out)[:NUM_HARMFUL]
    assert int(flagged.sum()) <= HONEST * NUM_HARMFUL
    assert not ground.unfamiliar(torch.zeros(50), ground.held_out[NUM_HARMFUL:]).any()


def test_evidence_is_the_same_bit_for_bit_whether_distances_are_read_or_not():
    anchors = made_anchors(tiny_llama(seed=0), tiny_llama(seed=9))
    context = ModelReader(tiny_llama(seed=0), refusals=random_refusals(), base=tiny_llama(seed=9), batch_size=5)
    ground = read_familiarity(context, anchors)
    rows = [*anchors.rows, *anchor_rows()[0]]
    measures = [EvidenceKind.FEATURE_SHIFT]
    told = []
    with_shape = collect(context, rows, measures, probe=anchors.probe, shape=ground.shape, progress=told.append)
    without = collect(context, rows, measures, probe=anchors.probe)
    assert torch.equal(with_shape.of(measures[0]), without.of(measures[0]))
    assert sum(told) == 2 * len(rows)
    change = normalised(states(context, rows, before=NOW)) - normalised(states(context, rows, before=BEFORE))
    assert_close(with_shape.distances(), ground.shape.distance(change), rtol=1e-4, atol=1e-4)


def test_a_file_of_anchors_from_before_there_were_distances_serves(tmp_path):
    write_anchors(tmp_path, made_anchors(tiny_llama(seed=0), tiny_llama(seed=9)))
    anchors = read_anchors(tmp_path)  # nothing of distances is stored
    context = ModelReader(tiny_llama(seed=0), refusals=random_refusals(), base=tiny_llama(seed=9))
    ground = read_familiarity(context, anchors)
    made = make_anchors(context, anchors.rows[: anchors.num_harmful], anchors.rows[anchors.num_harmful :])
    write_anchors(tmp_path, made)
    again = read_familiarity(context, read_anchors(tmp_path))
    assert (again.near, again.far) == pytest.approx((ground.near, ground.far), rel=1e-5)
