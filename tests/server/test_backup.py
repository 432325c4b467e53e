"""A copy of database and store, made as docs/serving.md says, is a server that has everything."""

import re
import shutil
import sqlite3
import subprocess

import psycopg
from sqlalchemy import make_url

from tests.server.postgres import programs
from tests.server.running import Server, chat_rows, train, upload


def fill(server):
    client = server.client()
    rows = upload(client).id
    client.fine_tuning.jobs.create(model="lab", training_file=rows)
    return server.key, rows, train(server)


def whole(server, key, rows, job):
    """Everything is there, and the key is still valid."""
    assert server.key is None, "no new operator key is made"
    client = server.client(key)
    assert client.files.content(rows).read() == chat_rows()
    ended = client.fine_tuning.jobs.retrieve(job)
    assert client.files.content(ended.result_files[0]).read().startswith(b"step,")
    adapter = server.queue.model(ended.fine_tuned_model).adapter
    assert server.context.blobs.exists(f"{adapter}/adapter_config.json")
    assert client.fine_tuning.jobs.create(model="lab", training_file=rows).status == "validating_files"


def test_a_copy_of_a_running_server_on_sqlite_is_whole(tmp_path):
    with Server(tmp_path / "here") as server:
        made = fill(server)
        (tmp_path / "there").mkdir()
        source = sqlite3.connect(tmp_path / "here" / "server.sqlite")
        target = sqlite3.connect(tmp_path / "there" / "server.sqlite")
        source.backup(target)  # what the shell's .backup does
        source.close(), target.close()
        shutil.copytree(tmp_path / "here" / "blobs", tmp_path / "there" / "blobs")
        fill(server)  # what came later is not in the copy
    with Server(tmp_path / "there") as server:
        whole(server, *made)


def test_a_dump_of_postgresql_is_whole(tmp_path, postgres):
    url = postgres()
    host = make_url(url).query["host"]
    schema = re.search(r"(s\d+)$", url)[1]
    reach = ["--host", host, "--username", "antibody"]
    with Server(tmp_path / "here", database=url) as server:
        made = fill(server)
        dump = [programs() / "pg_dump", "--format=custom", "--file", tmp_path / "antibody.dump", "--schema", schema]
        subprocess.run([*dump, *reach, "postgres"], check=True, capture_output=True)
        shutil.copytree(tmp_path / "here" / "blobs", tmp_path / "there" / "blobs")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
    restore = [programs() / "pg_restore", "--exit-on-error", "--no-owner", "--dbname", "postgres"]
    subprocess.run([*restore, *reach, tmp_path / "antibody.dump"], check=True, capture_output=True)
    with Server(tmp_path / "there", database=url) as server:
        whole(server, *made)
