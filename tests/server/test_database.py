"""The tables, their migrations, and what a kill leaves."""

import threading
import time
from contextlib import suppress

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from antibody_llm.errors import ConfigError
from antibody_llm.server.database.engine import Database
from antibody_llm.server.database.tables import Job, JobLabel, Organization, Table

EMPTY = ("hyperparameters", "defence", "gate", "safety", "private")
OLD_JOB = {
    **dict.fromkeys(EMPTY, "{}"),
    **{"organization_id": "o", "key_id": "k", "created_at": 1.0, "status": "queued", "model": "m", "base": "m"},
    **{"training_file": "file-1", "method": "supervised", "seed": 1, "result_files": "[]", "token": 0, "attempts": 0},
}
"""The columns of a job of the first version that must be there."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    postgres = request.param == "postgresql"
    made = Database(request.getfixturevalue("postgres")() if postgres else f"sqlite:///{tmp_path / 'a.sqlite'}")
    yield made
    made.close()


@pytest.fixture
def database(empty):
    empty.migrate()
    return empty


def test_the_migrations_make_the_tables_that_the_code_knows(database):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_rows_of_the_first_version_are_there_after_every_later_migration(empty):
    rows = (
        ("organizations", {"id": "o", "name": "n", "created_at": 1.0}),
        ("jobs", OLD_JOB | {"seq": 1, "id": "ftjob-1", "project_id": "p1"}),
        ("jobs", OLD_JOB | {"seq": 2, "id": "ftjob-2", "project_id": "p2"}),
        ("job_labels", {"job_seq": 1, "name": "k", "value": "v"}),
        ("job_labels", {"job_seq": 2, "name": "k", "value": "v"}),
    )
    empty.migrate("0001")
    with empty.write() as session:
        for table, row in rows:
            columns, places = ", ".join(row), ", ".join(f":{name}" for name in row)
            session.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), row)
    empty.migrate()
    with empty.read() as session:
        assert session.get(Organization, "o").name == "n"
        assert [job.id for job in session.query(Job).order_by(Job.seq)] == ["ftjob-1", "ftjob-2"]
        labels = session.query(JobLabel).order_by(JobLabel.job_seq)
        assert [(each.name, each.value, each.project_id) for each in labels] == [("k", "v", "p1"), ("k", "v", "p2")]


def test_migrating_twice_changes_nothing(database):
    with database.write() as session:
        session.add(Organization(id="o", name="n", created_at=1.0))
    database.migrate()
    with database.read() as session:
        assert session.get(Organization, "o").name == "n"


def test_a_commit_is_on_the_disk_before_it_is_acknowledged(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}")
    with database.read() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA synchronous")).scalar() == 2
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_the_time_in_a_block_that_writes_is_none_from_before_it_had_its_turn(tmp_path):
    """A claim that had waited for longer than a lease would have ended before it was made."""
    clock, asked, times = [100.0], threading.Event(), []
    database = Database(f"sqlite:///{tmp_path / 'a.sqlite'}", clock=lambda: clock[0])

    def late():
        asked.set()
        with database.write() as session:
            times.append(database.now(session))

    thread = threading.Thread(target=late)
    with database.write() as session:
        session.execute(text("SELECT 1"))
        thread.start()
        asked.wait()
        thread.join(0.3)  # it waits for its turn
        clock[0] = 200.0
    thread.join()
    database.close()
    assert times == [200.0]


def test_writers_wait_for_each_other_instead_of_failing(database):
    with database.write() as session:
        session.add(Organization(id="o", name="0", created_at=0.0))

    def add():
        for _ in range(10):
            with database.write() as session:
                row = session.get(Organization, "o", with_for_update=True)
                row.name = str(int(row.name) + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    with database.read() as session:
        assert session.get(Organization, "o").name == "40"


def test_a_block_that_raises_changes_nothing(database):
    with suppress(ZeroDivisionError), database.write() as session:
        session.add(Organization(id="o", name="n", created_at=1.0))
        session.flush()
        raise ZeroDivisionError
    with database.read() as session:
        assert session.get(Organization, "o") is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "not a URL"),
        ("mysql://x/y", "is not supported"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_used_says_why(url, words):
    with pytest.raises(ConfigError, match=words):
        Database(url).migrate()


def test_everybody_reads_one_clock(database):
    with database.read() as session:
        assert abs(database.now(session) - time.time()) < 60


def test_two_servers_that_start_at_once_migrate_once(request, tmp_path):
    url = f"sqlite:///{tmp_path / 'b.sqlite'}"
    found, barrier = [], threading.Barrier(3)

    def start():
        made = Database(url)
        barrier.wait()
        try:
            made.migrate()
        except Exception as error:
            found.append(error)
        made.close()

    threads = [threading.Thread(target=start) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == []
