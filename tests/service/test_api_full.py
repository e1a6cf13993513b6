"""A store whose disk is full, over HTTP: what cannot be recorded is refused in words, and reading goes on."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import event

from service.settings import Settings

from .conftest import served


def small(connection: sqlite3.Connection, _record: Any) -> None:
    """SQLite's own limit of a database's size gives the very error that a full disk gives."""
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")


def test_a_full_store_refuses_in_words_and_takes_jobs_again(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "fallline.db")
    with served(Settings.from_environment({"FALLLINE_HOME": str(tmp_path)})) as api:
        assert api.upload(name="table").status_code == 201
        engine, made = api.app.state.context.store.database.engine, 0
        spec, key = {"dataset": "table", "target": "kind"}, {"Idempotency-Key": "one"}
        event.listen(engine, "connect", small)
        engine.dispose()
        while (answer := api.client.post("/v1/jobs", json=spec)).status_code == 201:
            made += 1
        refusal = answer.json()["error"]
        assert (answer.status_code, refusal["code"], refusal["param"]) == (507, "disk_full", None)
        assert str(tmp_path / "fallline.db") in refusal["message"]
        assert api.client.post("/v1/jobs", json=spec, headers=key).status_code == 507
        assert len(api.client.get("/v1/jobs", params={"limit": 100}).json()["data"]) == made
        event.remove(engine, "connect", small)
        engine.dispose()
        assert api.client.post("/v1/jobs", json=spec, headers=key).status_code == 201
