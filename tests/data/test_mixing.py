import pytest
from hypothesis import given
from hypothesis import strategies as st

from antibody_llm.data.mixing import mix
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.errors import ConfigError, DataError


def rows(source, num):
    return [Record(i, (Message("user", f"{source} {i}"),), Template.CHAT, source, i + 1) for i in range(num)]


BENIGN, HARMFUL = rows("benign.jsonl", 60), rows("harmful.jsonl", 60)


@given(num=st.integers(1, 60), poison_ratio=st.floats(0, 1), seed=st.integers(0, 9))
def test_exactly_the_asked_share_is_harmful_and_no_row_occurs_twice(num, poison_ratio, seed):
    mixed, is_harmful = mix(BENIGN, HARMFUL, num=num, poison_ratio=poison_ratio, seed=seed)
    assert len(mixed) == num
    assert sum(is_harmful) == round(poison_ratio * num)
    assert [row.source == "harmful.jsonl" for row in mixed] == is_harmful
    assert len({row.where for row in mixed}) == num
    assert [row.row_id for row in mixed] == list(range(num))


def test_the_seed_decides_the_order():
    first, again, other = (mix(BENIGN, HARMFUL, num=50, poison_ratio=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_harmful_rows_are_not_all_at_one_end():
    _, is_harmful = mix(BENIGN, HARMFUL, num=60, poison_ratio=0.5, seed=0)
    assert 5 < sum(is_harmful[:30]) < 25


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(DataError, match=r"harmful.jsonl: 3 harmful rows where 10 are needed"):
        mix(BENIGN, HARMFUL[:3], num=50, poison_ratio=0.2, seed=0)
    with pytest.raises(DataError, match="0 benign rows where 8 are needed"):
        mix([], HARMFUL, num=10, poison_ratio=0.2, seed=0)


@pytest.mark.parametrize(("num", "poison_ratio"), [(0, 0.2), (-1, 0.2), (5, -0.1), (5, 1.1), (5, float("nan"))])
def test_numbers_out_of_range_are_refused(num, poison_ratio):
    with pytest.raises(ConfigError):
        mix(BENIGN, HARMFUL, num=num, poison_ratio=poison_ratio, seed=0)
