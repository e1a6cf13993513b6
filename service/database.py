"""The connection to the store: one engine, reads and writes as transactions, SQLite set up to keep its promises."""

import copy
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, create_engine, event, exc, select, update
from sqlalchemy.engine import make_url

from service.errors import StoreFull, StoreUnavailable
from service.tables import counters

BUSY_SECONDS = 30.0  # the patience of who has nothing better to do than to wait
SQLITE_CONNECTIONS = 64  # more than there are threads: none waits for another's
T = TypeVar("T")


def wal_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite has the fix of the WAL-reset bug, which corrupts databases of two connections."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)


class Database:
    """Transactions on `url`. Safe for several threads and processes. Both kinds raise StoreUnavailable when the store
    has been locked by others for `busy_seconds`, or does not answer; StoreFull where its disk has no room."""

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS) -> None:
        self.url, self.busy_seconds = url, busy_seconds
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        pool = {"pool_size": SQLITE_CONNECTIONS} if self.is_sqlite else {"pool_pre_ping": True}
        self.engine: Engine = create_engine(url, pool_timeout=busy_seconds, **pool)
        self._turn = threading.Lock()  # of this process's writers
        self._guard: Callable[[Connection], None] = lambda connection: None
        if self.is_sqlite:
            event.listen(self.engine, "connect", self._set_up_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._outages(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, which no other writer comes between; rolled back when the block raises."""
        with self._outages(), self._in_turn(), self.engine.connect() as connection:
            connection = connection.execution_options(fallline_writes=True)
            with connection.begin():
                self._guard(connection)
                yield connection

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """SQLite takes one writer at a time. Those that wait for it look again now and then, in no order, and the
        unlucky ones among many give up; so threads of one process wait for each other here."""
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=self.busy_seconds):
            raise StoreUnavailable("too many transactions wait for it")
        try:
            yield
        finally:
            self._turn.release()

    def guarded(self, guard: Callable[[Connection], None]) -> "Database":
        """The same one, by the same connections; each write begins with `guard`, in the same transaction."""
        found = copy.copy(self)
        found._guard = guard
        return found

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Tells an outage from a mistake in a statement."""
        try:
            yield
        except exc.TimeoutError as error:  # every connection is taken, by transactions that wait themselves
            raise StoreUnavailable("too many transactions wait for it") from error
        except exc.OperationalError as error:
            code = getattr(error.orig, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_ERROR:
                raise
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(make_url(self.url).database or self.url) from error
            raise StoreUnavailable(str(error.orig)) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _set_up_sqlite(self, connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where `_begin_sqlite` says so, not where the driver does
        journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "PERSIST"  # the quickest of rollback journals
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * self.busy_seconds)}")
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("fallline_writes", False)
    # A transaction that reads first and then writes can fail half way; one that announces itself waits its turn.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def record(kind: type[T], row: Row[Any]) -> T:
    """The record of class `kind` that `row`, of the table's columns by their names, holds."""
    mapping = row._mapping
    return kind(**{field.name: mapping[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def count_up(connection: Connection, name: str) -> None:
    """Raise the counter `name` by one."""
    connection.execute(update(counters).where(counters.c.name == name).values(value=counters.c.value + 1))


def read_counter(connection: Connection, name: str) -> int:
    """The counter's value."""
    return int(connection.execute(select(counters.c.value).where(counters.c.name == name)).scalar_one())


def ping(database: Database) -> None:
    """Raises when the database does not answer. It reads a row: SQLite answers `SELECT 1` without its file."""
    with database.read() as connection:
        connection.execute(select(counters.c.name).limit(1))
