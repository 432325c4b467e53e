import json

import pytest
from pydantic import TypeAdapter

from antibody_llm.errors import EvaluationError
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.measures import Measure, share, wilson_interval

DECODING = DecodingSettings(max_new_tokens=8)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # z^2 = 3.841459. 0 of 10: high = z^2 / (n + z^2) = 3.841459 / 13.841459.
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # 5 of 10: centre 0.5; half = 1.959964 sqrt(0.025 + 3.841459/400) / 1.3841459 = 0.263405.
        (5, 10, 0.236593, 0.763407),
        # 100 of 1000: centre (0.1 + 0.001920730) / 1.003841459 = 0.101530700;
        # half = 1.959964 sqrt(0.00009 + 3.841459/4e6) / 1.003841459 = 0.018621.
        (100, 1000, 0.082910, 0.120151),
    ],
)
def test_wilson_interval_is_the_one_worked_by_hand(hits, n, low, high):
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=2e-6)


def test_ends_are_exactly_zero_and_one_at_no_and_all_hits():
    assert all(wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0 for n in range(1, 200))


def test_a_share_carries_its_sample_size_decoding_and_judge():
    measure = share([True, False, False, True, True], name="x", judge="lab", decoding=DECODING)
    assert (measure.value, measure.n, measure.judge, measure.decoding) == (0.6, 5, "lab", DECODING)
    assert measure.low < 0.6 < measure.high


def test_a_share_of_nothing_raises():
    with pytest.raises(EvaluationError, match="harmful_score is a share of completions and there are none"):
        share([], name="harmful_score", judge="lab", decoding=DECODING)


def test_a_measure_survives_json():
    measure = share([True, False], name="x", judge="lab", decoding=DECODING)
    adapter = TypeAdapter(Measure)
    assert adapter.validate_python(json.loads(adapter.dump_json(measure))) == measure
