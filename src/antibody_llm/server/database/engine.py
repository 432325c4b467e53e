"""The database: SQLite with a write-ahead log by default, PostgreSQL by URL."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic.command import upgrade
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from ...errors import ConfigError
from . import visits as visits  # its table is one of those that migrations make

WRITES = "antibody_writes"
"""Execution option of a connection whose transaction is going to write."""
BUSY_MILLISECONDS = 30_000
_ALEMBIC = threading.Lock()  # it keeps its connection in a module


class Database:
    """Sessions on the tables. One object serves all threads of a process.

    Args:
        url: A SQLAlchemy URL: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST/NAME``.
        clock: Seconds since 1970; None: the machine's, or that of PostgreSQL, which every worker shares.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise ConfigError(
                "database: not a URL. Write sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."
            ) from None
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError(f"database: {parsed.get_backend_name()} is not supported. Use sqlite or postgresql.")
        self.url = parsed
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine = _engine(parsed)
        self._writing = self.engine.execution_options(**{WRITES: True})
        self._clock = clock

    def migrate(self, version: str = "head") -> None:
        """Bring the tables to a version; does nothing where they are.

        Args:
            version: By default that of the code.

        Raises:
            ConfigError: the database cannot be reached.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        try:
            with _ALEMBIC, self._writing.connect() as connection:
                if not self.is_sqlite:  # two servers that start at once: the second one waits
                    connection.execute(text("SELECT pg_advisory_xact_lock(7403)"))
                config.attributes["connection"] = connection
                upgrade(config, version)
                connection.commit()
        except OperationalError as error:
            raise ConfigError(f"database: cannot be reached ({error.orig}). Check its URL and that it runs.") from None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are on the disk when the block ends well, and undone where it raises.

        SQLite lets one writer in at a time, from the beginning of the block: what is read in it cannot change
        before it is written.
        """
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            session.connection()  # begins: a time that is asked for in the block is one at which nobody else writes
            yield session

    def now(self, session: Session) -> float:
        """Seconds since 1970, by one clock for all who share the database."""
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return time.time()
        return float(session.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def reachable(self) -> bool:
        """Whether a query is answered."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _engine(url: Any) -> Engine:
    if url.get_backend_name() != "sqlite":
        patience = {"options": f"-c lock_timeout={BUSY_MILLISECONDS} -c statement_timeout={2 * BUSY_MILLISECONDS}"}
        if "options" in url.query:
            patience = {}
        return create_engine(
            url, pool_size=20, max_overflow=40, pool_pre_ping=True, hide_parameters=True, connect_args=patience
        )
    engine = create_engine(
        url, pool_size=20, max_overflow=40, hide_parameters=True, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _opened(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # this file begins transactions itself, see below
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before it is acknowledged
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # A transaction that reads first and writes later fails with "database is locked" where another wrote
        # in between; one that takes the lock at once waits for its turn.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")

    return engine
