import pytest
import torch
from tests.tinylm import plain_nll, random_refusals, random_rows, tiny_llama
from torch.testing import assert_close

from antibody.errors import ModelError
from antibody.models.adapters import add_lora
from antibody.screening.evidence import collect, read_anchors, write_anchors


def by_hand(model, rows, refusals, k):
    """One row at a time."""
    out = []
    with torch.no_grad():
        for row in rows:
            start, end = row.spans[0]
            nlls = []
            for j in range(k):
                r = refusals.of(row, row.row_id * k + j)
                nlls.append(plain_nll(model, (*row.input_ids[:start], *r), start, start + len(r)) / len(r))
            out.append((sum(nlls) / k, plain_nll(model, row.input_ids, start, end) / (end - start)))
    return [torch.stack(column) for column in zip(*out, strict=True)]


def test_evidence_is_what_plain_forwards_of_each_row_say_with_a_base_of_its_own():
    aligned, base = tiny_llama(1), tiny_llama(2)
    rows, refusals = random_rows(7), random_refusals()
    got = collect(aligned, rows, refusals, pad_id=0, base=base, num_refusals=3, batch_size=3)
    (r, y), (br, by) = by_hand(aligned, rows, refusals, 3), by_hand(base, rows, refusals, 3)
    assert_close(got.ratio, r - y, atol=1e-5, rtol=1e-5)
    assert_close(got.shift, br - r, atol=1e-5, rtol=1e-5)
    assert_close(got.gap, (br - r) - (by - y), atol=1e-5, rtol=1e-5)


def test_with_an_adapter_the_base_is_the_adapter_switched_off():
    rows, refusals = random_rows(5), random_refusals()
    model = add_lora(tiny_llama(), r=2, targets=["q_proj"], seed=0)
    assert_close(collect(model, rows, refusals, pad_id=0).shift, torch.zeros(5), atol=1e-5, rtol=0)
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    got = collect(model, rows, refusals, pad_id=0)
    assert_close(got.base_refusal, by_hand(tiny_llama(), rows, refusals, 4)[0], atol=1e-5, rtol=1e-5)
    assert got.shift.abs().max() > 1e-3


def test_without_any_base_the_shift_is_refused_and_the_flag_named():
    with pytest.raises(ModelError, match="--base"):
        collect(tiny_llama(), random_rows(2), random_refusals(), pad_id=0)


def test_anchors_come_back_as_they_were_stored(tmp_path):
    assert read_anchors(tmp_path) == {}
    stored = collect(tiny_llama(1), random_rows(4), random_refusals(), pad_id=0, base=tiny_llama(2))
    write_anchors(tmp_path, {"harmful": stored, "benign": stored})
    back = read_anchors(tmp_path)
    assert list(back) == ["harmful", "benign"]
    assert_close(back["benign"].shift, stored.shift, atol=1e-6, rtol=1e-6)
