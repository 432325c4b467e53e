import sqlite3

import pytest
import torch
from tests.tinylm import random_rows, tiny_llama

from antibody_llm.models.adapters import add_lora
from antibody_llm.screening.cache import FILE, EvidenceCache, cache_folder, digest_of, row_digest, weights_identity

FOUND = {b"one": (0.1, 3, None), b"two": (-1.5, -1, 12.25)}


def test_what_was_written_is_read_by_the_next_run_bit_for_bit(tmp_path):
    first = EvidenceCache(tmp_path, b"reading")
    assert first.read(list(FOUND)) == {}
    first.write(FOUND)
    first.close()
    assert EvidenceCache(tmp_path, b"reading").read([b"one", b"none", b"two"]) == FOUND


def test_another_reading_knows_nothing_of_it(tmp_path):
    EvidenceCache(tmp_path, b"reading").write(FOUND)
    assert EvidenceCache(tmp_path, b"other").read(list(FOUND)) == {}


def test_more_rows_than_one_query_takes_are_all_found(tmp_path):
    many = {i.to_bytes(4, "big"): (float(i), i, float(i)) for i in range(1234)}
    cache = EvidenceCache(tmp_path, b"")
    cache.write(many)
    assert cache.read(list(many)) == many


def test_a_damaged_file_is_put_aside_told_and_begun_anew(tmp_path, caplog):
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    cache = EvidenceCache(tmp_path, b"")
    assert "damaged" in caplog.text
    cache.write(FOUND)
    assert cache.read(list(FOUND)) == FOUND
    assert (tmp_path / "evidence.damaged").read_bytes().startswith(b"this is no database")


def test_a_file_that_breaks_later_costs_the_cache_and_not_the_run(tmp_path, caplog):
    cache = EvidenceCache(tmp_path, b"")
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("DROP TABLE readings")
    assert cache.read(list(FOUND)) == {}
    assert "continues without it" in caplog.text
    cache.write(FOUND)
    assert cache.read(list(FOUND)) == {}
    assert caplog.text.count("continues without it") == 1


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_run(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = EvidenceCache(tmp_path / "file" / "folder", b"")
    assert cache.read(list(FOUND)) == {}
    assert "ANTIBODY_CACHE" in caplog.text


def test_the_folder_is_the_users_to_choose(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ANTIBODY_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "antibody")


def test_rows_are_the_same_where_a_model_reads_the_same():
    row, other = random_rows(2)
    alike = type(row)(99, row.input_ids, row.spans, row.template)
    start, end = row.spans[0]
    assert row_digest(row) == row_digest(alike)
    moved = type(row)(row.row_id, row.input_ids, ((start + 1, end),), row.template)
    assert len({row_digest(row), row_digest(other), row_digest(moved)}) == 3


def test_parts_do_not_run_into_each_other():
    assert digest_of(["ab", "c"]) != digest_of(["a", "bc"])
    assert digest_of(["ab"]) == digest_of([b"ab"])


@pytest.mark.parametrize("where", [0, 7, -1])
def test_a_model_with_one_weight_moved_is_another_and_a_copy_is_the_same(where):
    model = tiny_llama(1)
    assert weights_identity(model) == weights_identity(tiny_llama(1))
    moved = tiny_llama(1)
    weight = next(p for name, p in moved.named_parameters() if "down_proj" in name)
    with torch.no_grad():
        weight.view(-1)[where] += 0.5
    assert weights_identity(moved) != weights_identity(model)


def test_an_adapter_tells_by_its_weights_and_by_its_scaling():
    same = [weights_identity(add_lora(tiny_llama(), r=2, alpha=4, targets=["q_proj"], seed=0)) for _ in range(2)]
    scaled = weights_identity(add_lora(tiny_llama(), r=2, alpha=8, targets=["q_proj"], seed=0))
    seeded = weights_identity(add_lora(tiny_llama(), r=2, alpha=4, targets=["q_proj"], seed=1))
    assert same[0] == same[1]
    assert len({same[0], scaled, seeded, weights_identity(tiny_llama())}) == 4
