"""The store's schema, brought up to date at the start. Alembic is loaded only when there is something to do."""

import fcntl
from pathlib import Path

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

from service.tables import HEAD

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(url: str) -> None:
    """Apply what is missing. Processes that start at once wait for each other."""
    if is_at_head(url):
        return
    with _lock(url):
        if is_at_head(url):
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        command.upgrade(config, "head")


def is_at_head(url: str) -> bool:
    """Whether the schema is the one that this version of the service works with."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return False
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
    finally:
        engine.dispose()


class _lock:
    """A file lock beside an SQLite file; other databases have locks of their own, which their migrations take."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._path = f"{parsed.database}.lock" if parsed.get_backend_name() == "sqlite" and parsed.database else None

    def __enter__(self) -> None:
        if self._path is not None:
            self._file = open(self._path, "w")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._file.close()
