import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Template
from antibody_llm.data.roles import Role, Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.defences.finetuning.antibody_posterior import Weight, weights
from antibody_llm.errors import ConfigError, DataError, ModelError, TrainingError
from antibody_llm.primitives.mixture import harmful_share, unexpected
from antibody_llm.screening import harm as module
from antibody_llm.screening.evidence import Evidence, EvidenceKind
from antibody_llm.screening.reading import collect
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tinylm import plain_nll, random_refusals, step, tiny_llama
from tests.training.helpers import ROWS, made_anchors, trainer

ANCHORS = made_anchors(tiny_llama(seed=0), tiny_llama(seed=9))
"""Half of its rows are harmful, half benign."""


def started(user=None, aligned=0, base=9, anchors=ANCHORS, **options):
    model, before = tiny_llama(seed=aligned), tiny_llama(seed=base)
    rows = {**ROWS, "user": user or ROWS["user"]}
    context = StepContext(model, rows=rows, refusals=random_refusals(), base=before, anchors=anchors)
    defence = make_defence(Stage.FINETUNING, "antibody-posterior", options)
    defence.start(context)
    return defence, context


@pytest.mark.parametrize(("weight", "caution"), [("net", 1.0), ("net", 30.0), ("posterior", 300.0), ("hard", 30.0)])
def test_weights_by_hand(tmp_path, weight, caution):
    user = list(ANCHORS.rows)
    defence, context = started(user, weight=weight, caution=caution, flagged="skip")
    measure = EvidenceKind.FEATURE_SHIFT
    anchors = ANCHORS
    rule, evidence = anchors.log_ratio(measure), collect(context, user, [measure], probe=anchors.probe).of(measure)
    ratio = rule(evidence)
    share = harmful_share(ratio)
    assert 0.3 < share < 0.7
    crowd = unexpected(evidence, share, rule, *anchors.scores(measure)).tolist()
    assert min(crowd) < 1
    total = 0.0
    for (row_id, w, _), lam, k in zip(defence.state()["weights"].tolist(), ratio.tolist(), crowd, strict=True):
        harm = k * share * math.exp(lam) / (share * math.exp(lam) + 1 - share)
        worth = (1 - harm) - caution * harm
        expected = {
            "net": max(0.0, worth) / (1 - harm + caution * harm),
            "posterior": 1 - harm,
            "hard": 1.0 if worth > 0 else 0.0,
        }[weight]
        assert w == pytest.approx(expected, abs=1e-9), row_id
        total += harm
    assert defence.share == pytest.approx(total / len(user))
    assert defence.share < share - 1e-5


@pytest.mark.parametrize("flagged", ["skip", "refuse"])
def test_the_update_is_the_equation_row_by_row(tmp_path, flagged):
    user = list(ANCHORS.rows)
    defence, context = started(user, rehearsal=0.25, weight="posterior", flagged=flagged)
    batch, provider = user[4:20], ROWS["alignment"][:5]
    batches = {Role.USER: step(batch, 4), Role.ALIGNMENT: step(provider, 4)}
    got = defence.step(context, batches)
    resumed = make_defence(Stage.FINETUNING, "antibody-posterior", vars(defence.config))
    resumed.load_state(defence.state())
    again = resumed.step(context, batches)
    assert all(torch.equal(a, b) for a, b in zip(got.gradients, again.gradients, strict=True))
    assert got.metrics == again.metrics
    model, w = tiny_llama(seed=0), {int(i): w for i, w, _ in defence.state()["weights"].tolist()}
    recorded = [w[r.row_id] for r in batch]
    if flagged == "refuse":
        # By 1 - p of the same run without it: what is below 1/2 teaches refusal number (row id) mod n, with weight 1.
        posterior = started(user, weight="posterior", flagged="skip")[0].state()["weights"].tolist()
        likely = {int(i) for i, benign, _ in posterior if benign <= 0.5}
        assert 3 < len(likely & {r.row_id for r in batch}) < len(batch) - 3
        assert all(w[i] == (0.0 if i in likely else benign) for i, benign, _ in posterior)
        refusals = random_refusals().ids[batch[0].template]
        w |= dict.fromkeys(likely, 1.0)
        for at, row in enumerate(batch):
            if row.row_id in likely:
                prompt, refusal = row.input_ids[: row.spans[0][0]], refusals[row.row_id % len(refusals)]
                span = (len(prompt), len(prompt) + len(refusal))
                batch[at] = replace(row, input_ids=prompt + refusal, spans=(span,))

    def totals(rows, weight):
        nll = sum(weight(r) * plain_nll(model, r.input_ids, *r.spans[0]) for r in rows)
        return nll / sum(r.spans[0][1] - r.spans[0][0] for r in rows)

    mean = sum(w.values()) / len(w)
    assert mean > 0.1
    loss = 0.75 * totals(batch, lambda r: w[r.row_id] / mean) + 0.25 * totals(provider, lambda r: 1.0)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(got.gradients), expected, atol=1e-6, rtol=1e-4)
    assert got.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert got.rows.weight.tolist() == pytest.approx(recorded, rel=1e-5)


def test_a_step_of_harm_alone_moves_nothing(tmp_path):
    user = list(ANCHORS.rows)[:12]
    defence, context = started(user, rehearsal=0.0, flagged="skip")
    assert defence.share > 0.9
    got = defence.step(context, {Role.USER: step(user)})
    plain = make_defence(Stage.FINETUNING, "sft").step(context, {Role.USER: step(user)})
    assert flat(got.gradients).norm() < 0.1 * flat(plain.gradients).norm()


@pytest.mark.parametrize(("evidence", "refuses"), [("feature-shift", True), ("gap", False), ("ratio", False)])
def test_a_prompt_is_refused_only_for_what_it_says_itself(monkeypatch, evidence, refuses):
    monkeypatch.setattr("antibody_llm.screening.anchors.MIN_AUROC", 0.0)
    monkeypatch.setattr(module, "harm_posterior", lambda ratio, share: torch.ones_like(ratio))
    monkeypatch.setattr(module, "unexpected", lambda *args: torch.tensor(1.0))
    defence, _ = started(list(ANCHORS.rows), evidence=evidence)
    assert bool(len(defence.state()["refused"])) is refuses


def test_a_conversation_is_refused_at_the_turn_that_is_harm():
    answers = Evidence(
        3,
        row=torch.tensor([0, 0, 0, 1, 2, 2]),
        readings={("state", False): torch.tensor([0.1, 0.9, 0.9, 0.4, 0.7, 0.2])},
        nearest=torch.full((6,), -1),
    )
    nothing, marked = torch.zeros(6).bool(), torch.tensor([True, False, True, False, False, True])
    assert answers.first_turn(EvidenceKind.REFUSAL_FEATURE, nothing).tolist() == [1, 0, 0]
    assert answers.first_turn(EvidenceKind.REFUSAL_FEATURE, marked).tolist() == [0, 0, 0]


@pytest.mark.parametrize("order", ["harmless first", "harm first", "harm twice"])
def test_a_conversation_is_refused_at_its_first_turn_that_is_harm(order):
    harm, harmless, more = ANCHORS.rows[0], ANCHORS.rows[-8], ANCHORS.rows[3]
    parts = {"harmless first": (harmless, harm), "harm first": (harm, harmless), "harm twice": (harm, more)}[order]
    shift = len(parts[0].input_ids)
    both = replace(
        harm,
        row_id=99,
        input_ids=parts[0].input_ids + parts[1].input_ids,
        spans=(parts[0].spans[0], tuple(shift + end for end in parts[1].spans[0])),
    )
    user = [*ANCHORS.rows, both]
    defence, context = started(user, weight="posterior")
    measure = EvidenceKind.FEATURE_SHIFT
    rule, found = ANCHORS.log_ratio(measure), collect(context, user, [measure], probe=ANCHORS.probe)
    odds = harmful_share(rule(found.of(measure)))
    odds = torch.exp(rule(found.of_answers(measure)[-2:])) * odds / (1 - odds)
    turn = (odds >= 1).int().argmax()
    assert bool((odds >= 1).any())
    refused = dict(defence.state()["refused"].tolist())
    assert refused[99] == int(turn) == (1 if order == "harmless first" else 0)
    taught, start = defence._taught(context, both), both.spans[turn][0]
    assert taught.input_ids == both.input_ids[:start] + context.refusals.of(both, 99)
    assert taught.spans == ((start, len(taught.input_ids)),)


@pytest.mark.parametrize(
    ("p", "w"), [(0.0, 1.0), (0.001, 0.8181), (0.005, 0.3311), (0.0099, 0.0000), (0.02, 0.0), (1.0, 0.0)]
)
def test_a_row_that_is_worth_nothing_gets_nothing(p, w):
    # c = 100: 0.999 - 0.1 = 0.899 over 1.099; 0.995 - 0.5 = 0.495 over 1.495; at 1/101 the stakes are even
    harm = torch.tensor([p], dtype=torch.float64)
    assert float(weights(harm, Weight.NET, 100.0)) == pytest.approx(w, abs=1e-3)


def test_rows_are_scored_against_as_many_refusals_as_the_anchors_are(monkeypatch):
    monkeypatch.setattr("antibody_llm.screening.anchors.MIN_AUROC", 0.0)
    anchors = replace(ANCHORS, num_refusals=1)
    assert not anchors.evidence.has(EvidenceKind.SHIFT)  # read at the start of this run
    defence, context = started(list(anchors.rows), anchors=anchors, evidence="shift")
    found = [e for _, _, e in defence.state()["weights"].tolist()]
    expected = collect(context, anchors.rows, [EvidenceKind.SHIFT], num_refusals=1).of(EvidenceKind.SHIFT)
    assert found == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_row_that_reads_as_no_number_stops_the_run_instead_of_freeing_every_other(tmp_path):
    user = list(ANCHORS.rows)
    elsewhere = {token for row in (*user[:5], *user[6:]) for token in row.input_ids}
    odd = replace(user[5], input_ids=(min(set(range(3, 64)) - elsewhere), *user[5].input_ids[1:]))
    model = tiny_llama(seed=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[odd.input_ids[0]] = torch.nan
    rows = {**ROWS, "user": [*user[:5], odd, *user[6:]]}
    context = StepContext(model, rows=rows, refusals=random_refusals(), base=tiny_llama(seed=9), anchors=ANCHORS)
    with pytest.raises(TrainingError, match="row 6 of the data: .* not a finite number"):
        make_defence(Stage.FINETUNING, "antibody-posterior").start(context)


def test_a_prior_of_no_harm_reads_nothing_and_weighs_all_rows_alike(tmp_path):
    defence = make_defence(Stage.FINETUNING, "antibody-posterior", {"prior": (1, math.inf)})
    context = StepContext(tiny_llama(), rows=ROWS)  # neither base nor anchors
    defence.start(context)
    got = defence.step(context, {Role.USER: step(ROWS["user"][:4]), Role.ALIGNMENT: step(ROWS["alignment"][:1])})
    assert got.rows.weight.tolist() == [1.0] * 4
    assert got.rows.score is None


@pytest.mark.parametrize(("rehearsal", "rows"), [(1 / 8, 2), (0.25, 5), (0.01, 1), (0.5, 16)])
def test_rehearsal_is_a_share_of_the_step(rehearsal, rows):
    defence = make_defence(Stage.FINETUNING, "antibody-posterior", {"rehearsal": rehearsal})
    assert defence.batches == (Role.ALIGNMENT,)
    assert defence.rows_per_step(Role.ALIGNMENT, 16) == rows
    assert make_defence(Stage.FINETUNING, "antibody-posterior", {"rehearsal": 0}).batches == ()


def test_refreshing_reads_anchors_and_upload_again_with_the_model_as_it_is(tmp_path):
    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "antibody-posterior", {"refresh": 1}))
    run.train()
    columns = run.row_log.columns()
    by_epoch = [
        {r: s for r, s, e in zip(columns["row_id"], columns["score"], columns["epoch"], strict=True) if e == epoch}
        for epoch in (0, 1)
    ]
    assert by_epoch[0].keys() == by_epoch[1].keys()
    assert max(abs(by_epoch[0][r] - by_epoch[1][r]) for r in by_epoch[0]) > 1e-3


def test_without_anchors_or_with_another_base_the_run_stops(tmp_path):
    context = StepContext(tiny_llama(), rows=ROWS, refusals=random_refusals(), base=tiny_llama(9))
    with pytest.raises(ModelError, match="carries no anchors.*anchor_harmful_data"):
        make_defence(Stage.FINETUNING, "antibody-posterior").start(context)
    with pytest.raises(TrainingError, match="as stored"):
        started(base=3)


def test_rows_of_a_template_that_no_anchor_has_are_not_taken_for_benign(tmp_path):
    other = [replace(row, template=Template.CHAT) for row in list(ANCHORS.rows)]
    assert {row.template for row in ANCHORS.rows} == {Template.TEXT}
    with pytest.raises(DataError, match="chat template"):
        started(other)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rehearsal", 1.0),
        ("caution", 0),
        ("prior", (0.5, 1)),
        ("refresh", -1),
        ("evidence", "x"),
        ("weight", "soft"),
        ("flagged", "drop"),
    ],
)
def test_bad_options_are_named(option, value):
    with pytest.raises(ConfigError, match=f"antibody-posterior.{option}"):
        make_defence(Stage.FINETUNING, "antibody-posterior", {option: value})


class Ground:
    """A stand-in for the anchors' ground: every second row is unfamiliar, or none is."""

    def __init__(self, shape, every):
        self.shape, self.every = shape, every

    def unfamiliar(self, evidence, distance):
        assert len(evidence) == len(distance)
        return torch.arange(len(evidence)) % self.every == 0


@pytest.mark.parametrize("weight", ["net", "posterior"])
def test_unfamiliar_rows_weigh_nothing_and_the_others_what_they_weighed(tmp_path, monkeypatch, caplog, weight):
    user = list(ANCHORS.rows)
    plain = started(user, weight=weight)[0].state()["weights"]
    original = module.read_familiarity
    for every in (2, 10**6):
        monkeypatch.setattr(module, "read_familiarity", lambda *args: Ground(original(*args).shape, every))  # noqa: B023
        defence, _ = started(user, weight=weight)
        got = defence.state()["weights"]
        odd = torch.arange(len(user)) % every == 0
        assert torch.equal(got[~odd], plain[~odd])
        assert not got[odd, 1].any()
        assert torch.equal(got[:, 2], plain[:, 2])
        assert defence.num_unfamiliar == int(odd.sum())
    assert "12 of 24 rows are unlike every anchor" in caplog.text


def test_where_no_harm_is_found_at_face_value_unfamiliar_rows_weigh_one(tmp_path, monkeypatch):
    user = list(ANCHORS.rows)
    original = module.read_familiarity
    monkeypatch.setattr(module, "read_familiarity", lambda *args: Ground(original(*args).shape, 2))
    monkeypatch.setattr(module, "harmful_share", lambda *args, **options: 0.0)
    defence, _ = started(user)
    assert defence.state()["weights"][:, 1].eq(1).all()
    assert defence.num_unfamiliar == 0
