import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.catalogue import make_repair
from antibody_llm.defences.post.antidote import Antidote, AntidoteConfig, count, input_squares, masks_of, prunable
from antibody_llm.errors import ConfigError, DataError, ModelError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from antibody_llm.runs.repair import repair
from tests.defences.live import Live
from tests.tinylm import random_rows, tiny_llama, tiny_tokenizer

HARMFUL = random_rows(7, seed=3)
ROW = {"scope": "row", "rounding": "nearest"}


def adapted():
    model = add_lora(tiny_llama(), r=8, targets=["q_proj", "v_proj"], seed=0)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = torch.randn_like(p) * 0.3
    return model


def repaired(model, rows=HARMFUL, batch_size=3, **options):
    Antidote(AntidoteConfig(**options)).repair(
        ModelReader(model, rows={"harmful": rows}, batch_size=batch_size), seed=0
    )
    return model


def test_masks_by_hand_in_each_scope():
    a, b = torch.tensor([[4.0, 1.0, 2.0, 3.0], [8.0, 7.0, 6.0, 5.0]]), torch.tensor([[0.0, 9.0]])
    rows = masks_of([a, b], alpha=0.5, scope="row", rounding="nearest")
    assert rows[0].tolist() == [[True, False, False, True], [True, True, False, False]]
    assert rows[1].tolist() == [[False, True]]
    matrix = masks_of([a, b], alpha=0.5, scope="matrix", rounding="nearest")
    assert matrix[0].tolist() == [[False] * 4, [True] * 4]
    together = masks_of([a, b], alpha=0.3, scope="global", rounding="nearest")  # three of ten: 9, 8, 7
    assert together[0].tolist() == [[False] * 4, [True, True, False, False]]
    assert together[1].tolist() == [[False, True]]


def test_a_share_becomes_the_nearest_count_or_as_released_at_least_one():
    assert [count(32, a, "nearest") for a in (0.0, 0.01, 0.05, 0.1, 1.0)] == [0, 0, 2, 3, 32]
    assert [count(32, a, "up") for a in (0.0, 0.01, 0.05, 0.1, 1.0)] == [0, 1, 2, 4, 32]
    assert count(4096, 1e-5, "up") == 1


def plain_squares(model, rows):
    """s_j of every candidate, one row at a time, by its own hooks."""
    layers = prunable(model)
    sums = dict.fromkeys(layers, 0.0)
    handles = []
    for name, layer in layers.items():

        def hook(module, args, output, name=name):
            sums[name] = sums[name] + args[0][0].square().sum(dim=0)

        handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
    for handle in handles:
        handle.remove()
    return [s / len(rows) for s in sums.values()]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("make", [adapted, tiny_llama])
def test_statistics_are_those_row_by_row_whatever_the_padding(make, batch_size):
    model = make()
    reader = ModelReader(model, rows={"harmful": HARMFUL}, batch_size=batch_size)
    found = input_squares(reader, list(prunable(model).values()))
    assert_close(found, plain_squares(model, HARMFUL), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [adapted, tiny_llama])
def test_every_row_loses_exactly_its_k_highest_scores_and_no_other_weight_moves(make):
    model = make()
    candidates = prunable(model)
    squares = dict(zip(candidates, plain_squares(model, HARMFUL), strict=True))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    repaired(model, alpha=0.25)
    for name, p in model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer not in candidates:
            assert torch.equal(p, before[name])
            continue
        gone = (p == 0) & (before[name] != 0)
        assert (gone.sum(dim=1) == round(0.25 * p.shape[1])).all()
        assert torch.equal(p[~gone], before[name][~gone])
        score = before[name].abs() * squares[layer].sqrt()
        least = torch.where(gone, score, torch.inf).amin(dim=1)
        most = torch.where(gone, -torch.inf, score).amax(dim=1)
        assert (least >= most).all()


def test_an_adapter_leaves_the_base_alone_and_a_share_of_zero_everything():
    model = adapted()
    assert all("lora_" in name for name in prunable(model))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    repaired(model, alpha=0.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_scores_without_data_rank_by_size_or_by_a_seed():
    model = repaired(tiny_llama(), rows=[], score="magnitude", alpha=0.25)
    twin = tiny_llama()
    weight, pruned = twin.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(pruned == 0, masks_of([weight.abs()], alpha=0.25, **ROW)[0])
    a, b = (repaired(tiny_llama(), rows=[], score="random") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_a_score_without_data_asks_for_none_through_the_public_verb(tmp_path, score):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="needs harmful rows"):  # as the paper's score does
        repair(tmp_path / "model", output=tmp_path / "run")
    done = repair(tmp_path / "model", output=tmp_path / "run", options={"score": score, "alpha": 0.25})
    assert done.num_rows == 0
    loaded = type(model).from_pretrained(done.model).model.layers[0].self_attn.q_proj.weight
    assert ((loaded == 0).sum(dim=1) == 8).all()


@pytest.mark.parametrize("score", ["wanda", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_scores_are_held_one_matrix_at_a_time(scope, score):
    model = tiny_llama(num_hidden_layers=6, hidden_size=40).bfloat16()  # so that float32 is a score, or made for one
    with Live(model, lambda t: t.dtype == torch.float32 and tuple(t.shape) in ((40, 40), (20, 40))) as live:
        repaired(model, alpha=0.25, scope=scope, score=score)
    assert 0 < live.peak <= 3  # of 18: the weights in float32, their sizes, their scores


def test_a_repair_leaves_no_hook_no_gradient_and_the_mode_as_it_was_also_when_it_raises():
    model = adapted().train()
    flags = [p.requires_grad for p in model.parameters()]
    defence = make_repair("antidote", {"alpha": 0.25})
    reader = ModelReader(model, rows={"harmful": HARMFUL}, batch_size=3)
    broken = model.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("the forward failed")))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="the forward failed"):
        defence.repair(reader, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    broken.remove()
    defence.repair(reader, seed=0)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_to_score_on_and_nothing_to_remove_are_refused():
    with pytest.raises(DataError, match="antidote scores weights on harmful rows"):
        repaired(tiny_llama(), rows=[])
    with pytest.raises(ModelError, match="antidote finds nothing to remove in Linear"):
        prunable(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_absurd_shares_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match="antidote.alpha"):
        AntidoteConfig(alpha=bad)
