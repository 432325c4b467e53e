from dataclasses import replace
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tinylm import random_refusals, random_rows, tiny_llama
from tests.training.helpers import anchor_rows
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaModel

from antibody_llm.errors import DataError, ModelError, TrainingError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.primitives.statistics import auroc
from antibody_llm.screening.anchors import (
    ANCHORS,
    check_anchors,
    checked_anchors,
    make_anchors,
    read_anchors,
    with_measure,
    write_anchors,
)
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.probe import fit_probe, held_out_shifts
from antibody_llm.screening.reading import collect
from antibody_llm.screening.states import normalised


def context(aligned=1, base=2):
    return ModelReader(tiny_llama(aligned), refusals=random_refusals(), base=tiny_llama(base))


@pytest.fixture(scope="module")
def made():
    return make_anchors(context(), anchor_rows()[0], anchor_rows()[1][:10], num_refusals=2)


@pytest.fixture(scope="module")
def anchors(made):
    """With what every measure needs."""
    for measure in EvidenceKind:
        made = with_measure(context(), made, measure)
    return made


def test_each_of_both_models_reads_every_prompt_once_and_no_answer_or_refusal(monkeypatch):
    lengths, told = [], []
    forward = LlamaModel.forward

    def counted(self, *args, **kwargs):
        lengths.append(kwargs["attention_mask"].sum(dim=1).tolist())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    harmful, benign = anchor_rows()
    made = make_anchors(context(), harmful, benign, progress=told.append)
    prompts = [row.spans[0][0] for row in (*harmful, *benign)]
    assert sorted(chain(*lengths)) == sorted(prompts * 2)
    assert sum(told) == 2 * len(prompts)
    assert {measure for measure in EvidenceKind if made.evidence.has(measure)} == {"feature-shift", "refusal-feature"}


@pytest.mark.parametrize("measure", list(EvidenceKind))
def test_evidence_of_anchors_is_that_which_an_upload_s_rows_are_read_for(anchors, made, measure):
    direct = collect(context(), made.rows, [measure], probe=made.probe, num_refusals=2).of(measure)
    assert_close(anchors.evidence.of(measure), direct, atol=1e-4, rtol=1e-4)


def test_a_measure_is_read_on_demand_once_what_is_stored_has_been_compared(made):
    read = checked_anchors(context(), made, EvidenceKind.SHIFT)
    assert read.evidence.has(EvidenceKind.SHIFT)
    assert not made.evidence.has(EvidenceKind.SHIFT)
    assert checked_anchors(context(), read, EvidenceKind.SHIFT) is read
    with pytest.raises(TrainingError, match="feature-shift of an anchor is"):
        checked_anchors(context(1, 3), made, EvidenceKind.SHIFT)
    with pytest.raises(ModelError, match=r"shift was not read of the model's anchors"):
        made.log_ratio(EvidenceKind.SHIFT)


def changes(num=14, seed=0):
    """(now, before) [num, 2, 5], the first half harmful."""
    generator = torch.Generator().manual_seed(seed)
    now, before = torch.randn(2, num, 2, 5, generator=generator)
    now[: num // 2, :, 0] += 3
    return now, before


def test_feature_shift_is_half_fisher_and_half_difference_of_means():
    now, before = changes()
    change = normalised(now) - normalised(before)
    harm, benign = change[:7], change[7:]
    # difference of means, layer by layer
    mean = 0
    weights = []
    for layer in range(2):
        u = harm[:, layer].mean(0) - benign[:, layer].mean(0)
        a, b = harm[:, layer] @ u, benign[:, layer] @ u
        apart = a.mean() - b.mean()
        weights.append((apart / ((a.var() + b.var()) / 2).sqrt()) ** 2)
        mean = mean + weights[-1] * ((change[:, layer] @ u) - b.mean()) / apart
    mean = mean / sum(weights)
    # Fisher's discriminant over both layers at once, by a plain inverse
    flat = change.flatten(1).double()
    x = torch.cat([flat[:7] - flat[:7].mean(0), flat[7:] - flat[7:].mean(0)])
    s = x.T @ x / 12
    s = 0.95 * s + 0.05 * s.trace() / 10 * torch.eye(10)
    w = torch.linalg.inv(s) @ (flat[:7].mean(0) - flat[7:].mean(0))
    fisher = (flat @ w - flat[7:].mean(0) @ w) / ((flat[:7].mean(0) - flat[7:].mean(0)) @ w)
    probe = fit_probe(now, before, num_harmful=7)
    got = (change * probe.shift).sum((1, 2)) - probe.offset
    assert_close(got.double(), (mean.double() + fisher) / 2, atol=1e-4, rtol=1e-4)
    assert float(got[:7].mean()) == pytest.approx(1.0, abs=1e-4)
    assert float(got[7:].mean()) == pytest.approx(0.0, abs=1e-4)


def test_the_refusal_feature_is_the_mean_difference_at_the_layer_that_tells_best():
    now, before = changes()
    now[:7, 1] += 5
    probe = fit_probe(now, before, num_harmful=7)
    assert_close(probe.state[1], now[:7, 1].mean(0) - now[7:, 1].mean(0))
    assert probe.state[0].abs().sum() == 0


def test_a_held_out_shift_does_not_know_its_own_label():
    # 2 x 200 numbers and 24 rows without any difference: fitted to themselves they look perfectly separate.
    now, before = torch.randn(2, 24, 2, 200, generator=torch.Generator().manual_seed(1))
    probe = fit_probe(now, before, num_harmful=12)
    own = ((normalised(now) - normalised(before)) * probe.shift).sum((1, 2))
    assert auroc(own[12:], own[:12]) == 1.0
    held_out = held_out_shifts(now, before, num_harmful=12)
    assert 0.2 < auroc(held_out[12:], held_out[:12]) < 0.8
    keep = torch.arange(24) % 12 % 8 != 3  # the fold of rows 3, 11, 15 and 23
    without = fit_probe(now[keep], before[keep], num_harmful=10)
    change = normalised(now[3]) - normalised(before[3])
    assert float(held_out[3]) == pytest.approx(float((change * without.shift).sum() - without.offset), abs=1e-4)


def test_a_model_that_alignment_did_not_change_is_refused():
    with pytest.raises(ModelError, match="nothing was aligned"):
        make_anchors(context(1, 1), random_rows(9), random_rows(9, seed=1))


def test_a_measure_that_does_not_tell_the_anchors_apart_is_refused(anchors):
    with pytest.raises(ModelError, match=r"AUROC 0\.\d{3}, at least 0\.800 needed.*Choose another measure, or align"):
        anchors.log_ratio(next(m for m in EvidenceKind if auroc(*reversed(anchors.scores(m))) < 0.8))
    assert float(anchors.log_ratio(EvidenceKind.FEATURE_SHIFT).slope) > 0


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="7 benign anchor rows where at least 8"):
        make_anchors(context(), random_rows(8), random_rows(7))


def test_an_anchor_of_several_turns_is_refused_since_its_first_turn_alone_would_be_read():
    several = [*random_rows(8, seed=1), *random_rows(2, num_turns=2)]
    told = r"benign anchor row 9 \(1 more like it\): 2 trained turns.*one question and one answer"
    with pytest.raises(DataError, match=told):
        make_anchors(context(), random_rows(8), several)


def test_an_auroc_just_below_what_is_needed_is_not_rounded_up_to_it(anchors):
    # 12 harmful above 7 benign each, all but one (a tie) above another, none above the last two: 95.5 of 120 pairs
    held_out = torch.tensor([*range(1, 13), *[0] * 7, 1, 20, 20]).float()
    with pytest.raises(ModelError, match=r"AUROC 0\.795, at least 0\.800"):
        replace(anchors, held_out=held_out).log_ratio(EvidenceKind.FEATURE_SHIFT)


def test_an_anchor_that_reads_as_no_number_is_named():
    model = tiny_llama(1)
    with torch.no_grad():
        model.get_input_embeddings().weight[6] = torch.nan  # the last token of every benign anchor's prompt
    harmful = [row for row in anchor_rows()[0] if 6 not in row.input_ids]
    assert len(harmful) >= 8
    with pytest.raises(TrainingError, match=r"^benign anchor row 1 \(and benign anchor row 2"):
        make_anchors(ModelReader(model, refusals=random_refusals(), base=tiny_llama(2)), harmful, anchor_rows()[1])


def test_they_come_back_as_they_were_stored(tmp_path, anchors):
    assert read_anchors(tmp_path) is None
    write_anchors(tmp_path, anchors)
    back = read_anchors(tmp_path)
    assert back.rows == anchors.rows
    assert (back.num_harmful, back.num_refusals) == (12, 2)
    assert_close(back.held_out, anchors.held_out)
    for measure in EvidenceKind:
        assert_close(back.evidence.of(measure), anchors.evidence.of(measure))
    assert [path.name for path in tmp_path.iterdir()] == [ANCHORS]


def test_a_damaged_file_says_how_to_mend_it(tmp_path, anchors):
    (tmp_path / ANCHORS).write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"Align the model again"):
        read_anchors(tmp_path)
    write_anchors(tmp_path, anchors)
    tensors = load_file(tmp_path / ANCHORS)
    del tensors["spans"]
    save_file(tensors, tmp_path / ANCHORS, metadata={"num_harmful": "12", "num_refusals": "2"})
    with pytest.raises(ModelError, match="spans"):
        read_anchors(tmp_path)


def one_more(tensor):
    return torch.cat([tensor, tensor[-1:]])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("num_harmful", None),
        ("lengths", lambda t: t + 1),
        ("templates", lambda t: t + 7),
        ("templates", one_more),
        ("spans", lambda t: t + 100),
        ("spans", lambda t: t[:, :2].contiguous()),
        ("probe.offset", lambda t: torch.stack([t, t])),
    ],
)
def test_a_file_whose_parts_do_not_fit_together_says_the_same(tmp_path, anchors, name, change):
    write_anchors(tmp_path, anchors)
    tensors, metadata = load_file(tmp_path / ANCHORS), {"num_harmful": "12", "num_refusals": "2"}
    if change is None:
        metadata[name] = "twelve"
    else:
        tensors[name] = change(tensors[name])
    save_file(tensors, tmp_path / ANCHORS, metadata=metadata)
    with pytest.raises(ModelError, match=r"cannot be read .* Align the model again"):
        read_anchors(tmp_path)


@pytest.mark.parametrize("measure", list(EvidenceKind))
def test_the_same_models_pass_the_check_and_another_base_does_not(anchors, measure):
    check_anchors(context(), anchors, measure)
    if measure.needs_base:
        with pytest.raises(TrainingError, match=r"is -?\d+\.\d+ now and -?\d+\.\d+ as stored"):
            check_anchors(context(1, 3), anchors, measure)
