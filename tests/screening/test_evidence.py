import pytest
import torch
from tests.tinylm import plain_nll, random_refusals, random_rows, tiny_llama
from torch.testing import assert_close

from antibody_llm.errors import ModelError, TrainingError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.probe import Probe
from antibody_llm.screening.reading import collect
from antibody_llm.screening.states import states

LIKELIHOODS = (EvidenceKind.RATIO, EvidenceKind.SHIFT, EvidenceKind.GAP)


def context(model, base=None, **settings):
    return ModelReader(model, refusals=random_refusals(), base=base, **settings)


def by_hand(model, rows, refusals, k):
    """(NLL(r|x), NLL(y|x)) of the last turn of each row, one row at a time."""
    out = []
    with torch.no_grad():
        for row in rows:
            start, end = row.spans[-1]
            nlls = []
            for j in range(k):
                r = refusals.of(row, row.row_id * k + j)
                nlls.append(plain_nll(model, (*row.input_ids[:start], *r), start, start + len(r)) / len(r))
            out.append((sum(nlls) / k, plain_nll(model, row.input_ids, start, end) / (end - start)))
    return [torch.stack(column) for column in zip(*out, strict=True)]


def plain_states(model, rows):
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack([layer[0, -1] for layer in _layer_outputs(model, row.input_ids[: row.spans[0][0]])])
                for row in rows
            ]
        )


def _layer_outputs(model, ids):
    seen = []
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in model.model.layers]
    model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [out[0] if isinstance(out, tuple) else out for out in seen]


@pytest.mark.parametrize("wanted", [LIKELIHOODS, (EvidenceKind.SHIFT,), (EvidenceKind.RATIO,)])
def test_likelihoods_are_what_plain_forwards_of_each_row_say(wanted):
    aligned, base = tiny_llama(1), tiny_llama(2)
    rows, refusals = random_rows(7), random_refusals()
    got = collect(context(aligned, base, batch_size=3), rows, wanted, num_refusals=3)
    (r, y), (r0, y0) = by_hand(aligned, rows, refusals, 3), by_hand(base, rows, refusals, 3)
    expected = {EvidenceKind.RATIO: y - r, EvidenceKind.SHIFT: r0 - r, EvidenceKind.GAP: (r0 - r) - (y0 - y)}
    for measure in wanted:
        assert_close(got.of(measure), expected[measure], atol=1e-5, rtol=1e-5)
    assert not got.has(EvidenceKind.FEATURE_SHIFT)


def test_the_nearest_refusal_is_the_likeliest_of_those_scored():
    model, rows, refusals = tiny_llama(1), random_rows(6), random_refusals()
    got = collect(context(model), rows, [EvidenceKind.RATIO], num_refusals=3).nearest_refusal()
    for row, found in zip(rows, got.tolist(), strict=True):
        start = row.spans[0][0]
        numbers = [(row.row_id * 3 + j) % len(refusals) for j in range(3)]
        with torch.no_grad():
            nll = [
                float(plain_nll(model, (*row.input_ids[:start], *r), start, start + len(r)) / len(r))
                for r in (refusals.of(row, number) for number in numbers)
            ]
        assert found == numbers[nll.index(min(nll))]


def test_features_are_plain_hidden_states_projected():
    aligned, base, rows = tiny_llama(1), tiny_llama(2), random_rows(6)
    generator = torch.Generator().manual_seed(0)
    shift, state = torch.randn(2, 2, 32, generator=generator)
    probe = Probe(shift, offset=0.25, state=state)
    wanted = (EvidenceKind.FEATURE_SHIFT, EvidenceKind.REFUSAL_FEATURE)
    h, h0 = plain_states(aligned, rows), plain_states(base, rows)

    def normalised(hidden):
        return hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    expected = ((normalised(h) - normalised(h0)) * shift).sum((1, 2)) - 0.25
    for measures in (wanted, (*wanted, *LIKELIHOODS)):  # in a pass of its own, and out of the passes over answers
        got = collect(context(aligned, base, batch_size=4), rows, measures, probe=probe)
        assert_close(got.of(EvidenceKind.FEATURE_SHIFT), expected, atol=1e-4, rtol=1e-4)
        assert_close(got.of(EvidenceKind.REFUSAL_FEATURE), (h * state).sum((1, 2)), atol=1e-4, rtol=1e-4)
    assert_close(states(context(aligned, base), rows, before=True), h0, atol=1e-5, rtol=1e-5)


def test_of_a_row_with_several_turns_each_measure_takes_the_worst():
    aligned, base, rows = tiny_llama(1), tiny_llama(2), random_rows(5, num_turns=3)
    got = collect(context(aligned, base), rows, LIKELIHOODS)
    turns = [type(r)(r.row_id, r.input_ids[: r.spans[k][1]], (r.spans[k],), r.template) for r in rows for k in range(3)]
    alone = collect(context(aligned, base), turns, LIKELIHOODS)
    for measure in LIKELIHOODS:
        assert_close(got.of(measure), alone.of(measure).view(5, 3).amax(1), atol=1e-5, rtol=1e-5)


def test_a_row_reads_the_same_whatever_stands_beside_it():
    model, base, rows = tiny_llama(1), tiny_llama(2), random_rows(9)
    together = collect(context(model, base, batch_size=9), rows, [EvidenceKind.GAP]).of(EvidenceKind.GAP)
    alone = collect(context(model, base, batch_size=1), rows, [EvidenceKind.GAP]).of(EvidenceKind.GAP)
    assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_with_an_adapter_the_base_is_the_adapter_switched_off():
    rows, refusals = random_rows(5), random_refusals()
    model = add_lora(tiny_llama(), r=2, targets=["q_proj"], seed=0)
    same = collect(context(model), rows, [EvidenceKind.SHIFT]).of(EvidenceKind.SHIFT)
    assert_close(same, torch.zeros(5), atol=1e-5, rtol=0)
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    got = collect(context(model), rows, [EvidenceKind.SHIFT]).of(EvidenceKind.SHIFT)
    expected = by_hand(tiny_llama(), rows, refusals, 4)[0] - by_hand(model, rows, refusals, 4)[0]
    assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert model.training
    assert [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n] == []


def test_without_any_base_the_shift_is_refused_and_the_setting_named():
    with pytest.raises(ModelError, match="as base"):
        collect(context(tiny_llama()), random_rows(2), [EvidenceKind.SHIFT])


def test_progress_is_told_every_answer_for_each_model():
    told = []
    collect(context(tiny_llama(1), tiny_llama(2)), random_rows(7), [EvidenceKind.SHIFT], progress=told.append)
    assert sum(told) == 14


def context_with_nan(token):
    """A model that overflows on every text with this token."""
    model = tiny_llama(1)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    return context(model, tiny_llama(2))


def test_a_row_that_reads_as_no_number_is_named_and_never_judged():
    rows = random_rows(6)
    elsewhere = [ids for row in (*rows[:4], *rows[5:]) for ids in row.input_ids]
    elsewhere += [ids for number in range(5) for ids in random_refusals().of(rows[0], number)]
    token = min(set(rows[4].input_ids[: rows[4].spans[0][0]]) - set(elsewhere))
    probe = Probe(torch.ones(2, 32), 0.0, torch.ones(2, 32))
    for measure in EvidenceKind:
        with pytest.raises(TrainingError, match=r"^row 5 of the data: what the model.*Take the row out"):
            collect(context_with_nan(token), rows, [measure], probe=probe)
        with pytest.raises(TrainingError, match=r"^upload, line 4: "):
            collect(
                context_with_nan(token),
                rows[4:5],
                [measure],
                probe=probe,
                name=lambda row: f"upload, line {row.row_id}",
            )
    with pytest.raises(TrainingError, match=r"not a finite number"):
        states(context_with_nan(token), rows, before=False)
    states(context_with_nan(token), rows, before=True)
