import json

import pytest

from antibody_llm.attacks.mixing import published_counts, published_mix
from antibody_llm.building.attacks import AttackFiles, write_attack
from antibody_llm.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("num", "poison_ratio", "harmful", "clean"),
    [
        (1000, 0.0, 0, 1000),
        (1000, 0.05, 49, 950),  # 0 < i < 50
        (1000, 0.1, 99, 900),
        (1000, 0.15, 149, 850),
        (1000, 0.2, 199, 800),
        (1000, 0.8, 799, 199),  # (1 - 0.8) * 1000 is 199.99999999999997
        (1000, 0.9, 899, 99),  # (1 - 0.9) * 1000 is 99.99999999999998
        (1000, 1.0, 999, 0),
        (700, 0.1, 69, 630),
        (5000, 0.1, 499, 4500),
        (10, 0.1, 0, 9),  # nothing is between 0 and 1
        (5, 0.1, 0, 4),
    ],
)
def test_the_published_counts_are_those_of_the_loop(num, poison_ratio, harmful, clean):
    assert published_counts(num, poison_ratio) == (harmful, clean)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(name, num):
    return [{"prompt": f"{name} {n}", "completion": "yes"} for n in range(num)]


def test_the_published_upload_leaves_out_the_first_harmful_row_and_keeps_the_files_order(tmp_path):
    files = AttackFiles(
        name="mixing",
        data=write(tmp_path / "clean.jsonl", pairs("clean", 9)),
        harmful_data=write(tmp_path / "harmful.jsonl", pairs("harmful", 5)),
        output=tmp_path / "upload.jsonl",
        truth=tmp_path / "truth.jsonl",
        num=10,
        poison_ratio=0.4,
        parity=True,
    )
    written = write_attack(files)
    rows = [json.loads(line) for line in (tmp_path / "upload.jsonl").read_text().splitlines()]
    asked = [row["messages"][0]["content"] for row in rows]
    assert asked == [*(f"harmful {n}" for n in (1, 2, 3)), *(f"clean {n}" for n in range(6))]
    assert (written.num_rows, written.num_poison) == (9, 3)
    truth = [json.loads(line)["is_harmful"] for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert truth == [True] * 3 + [False] * 6


def test_rows_that_the_published_loop_would_do_without_are_missed(tiny_means):
    with pytest.raises(DataError, match="2 harmful rows where 4 are needed"):
        published_mix(tiny_means(num=8, poison_ratio=0.5))
    with pytest.raises(DataError, match="8 clean rows where 20 are needed"):
        published_mix(tiny_means(num=20, poison_ratio=0.0))
    with pytest.raises(ConfigError, match=r"num is 1 and poison_ratio is 1.0: the release takes no row then"):
        published_mix(tiny_means(num=1, poison_ratio=1.0))


def test_only_mixing_has_a_release_to_follow(tmp_path):
    with pytest.raises(ConfigError, match="parity is of mixing alone: no release has few-shot"):
        write_attack(AttackFiles(name="few-shot", data="x.jsonl", output=tmp_path / "y.jsonl", parity=True))
