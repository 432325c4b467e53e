import torch
from torch import nn

from antibody_llm.primitives.snapshots import from_state, snapshot, snapshot_state


def test_a_snapshot_is_a_copy_that_does_not_follow_the_weights():
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2))]
    kept = snapshot(params)
    with torch.no_grad():
        params[0].add_(1.0)
    assert [k.tolist() for k in kept] == [[0.0] * 3, [1.0] * 2]
    assert not any(k.requires_grad for k in kept)


def test_many_tensors_come_back_in_order_and_those_of_another_name_are_left_alone():
    kept = [torch.full((2,), float(i)) for i in range(12)]  # "anchor.10" sorts before "anchor.2"
    state = snapshot_state(kept, "anchor") | snapshot_state(kept[:1], "fisher") | {"clock": torch.tensor(3)}
    assert all(torch.equal(a, b) for a, b in zip(from_state(state, "anchor"), kept, strict=True))
    assert len(from_state(state, "fisher")) == 1
    assert from_state(state, "phi") == []
