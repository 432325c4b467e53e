"""A real PostgreSQL, from Debian's package, for the tests that need one."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


def programs():
    """Folder of PostgreSQL's programs; skips where there is none, and fails under CI."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if folders:
        return folders[-1]
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    if os.environ.get("CI"):
        pytest.fail("PostgreSQL is not installed, and CI needs it")
    pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")


@contextmanager
def cluster():
    """A server on a socket in a folder of its own; yields a function that makes the URL of empty tables."""
    bin_folder = programs()
    as_user = {"user": "postgres"} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="antibody-pg-") as folder:
        if as_user:
            shutil.chown(folder, "postgres")

        def run(*command):
            subprocess.run(command, check=True, capture_output=True, cwd=folder, **as_user)

        data = f"{folder}/data"
        run(str(bin_folder / "initdb"), "-D", data, "-A", "trust", "-U", "antibody", "--no-sync", "-E", "UTF8")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        run(str(bin_folder / "pg_ctl"), "-D", data, "-w", "-o", options, "-l", f"{folder}/log", "start")
        made = 0
        here = f"postgresql://antibody@/postgres?host={folder}"

        def new_database():
            nonlocal made
            made += 1
            with psycopg.connect(here, autocommit=True) as connection:  # a schema costs less than a database
                connection.execute(f"CREATE SCHEMA s{made}")
            return f"{here}&options=-csearch_path%3Ds{made}"

        try:
            yield new_database
        finally:
            run(str(bin_folder / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
