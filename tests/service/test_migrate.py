"""The migrations give exactly the tables that the statements work with, once, whoever starts at the same time."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from service.database import wal_is_safe
from service.migrate import MIGRATIONS, is_at_head, migrate
from service.store import Store
from service.tables import HEAD, metadata


def test_the_newest_migration_gives_the_tables(empty_database: Path) -> None:
    engine = create_engine(f"sqlite:///{empty_database}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        made = inspect(connection)
        for table in metadata.sorted_tables:
            assert {index["name"] for index in made.get_indexes(table.name)} == {index.name for index in table.indexes}
    engine.dispose()
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'with a % in it.db'}"
    program = f"from service.migrate import migrate; migrate({url!r})"
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert is_at_head(url)
    store = Store(url)
    assert (store.last_event_number(), store.last_deployment_number()) == (0, 0)
    store.close()


def test_migrating_again_changes_nothing(store: Store) -> None:
    store.create_dataset("ds_1", "digits", "csv")
    migrate(store.database.url)
    assert store.get_dataset("ds_1").version == 1


def test_no_second_program_is_needed_to_see_that_nothing_is_to_be_done(empty_database: Path) -> None:
    """The API starts a second faster when Alembic stays out."""
    program = (
        f"import sys; from service.migrate import migrate; migrate('sqlite:///{empty_database}');"
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 3), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
    ],
)
def test_the_write_ahead_log_is_used_only_where_it_is_safe(version: tuple[int, ...], safe: bool) -> None:
    assert wal_is_safe(version) is safe


def test_the_database_is_durable_and_keeps_its_promises(store: Store) -> None:
    with store.database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
