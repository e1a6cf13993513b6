"""A store in a file, an API that listens, and small things to put into both."""

import secrets
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.migrate import migrate
from service.records import DatasetRecord, JobRecord
from service.settings import Settings
from service.store import Store

SHA = "ab" * 32
SIGNATURE: dict[str, Any] = {
    "inputs": [{"name": "x", "type": "number", "required": True}],
    "outputs": [{"name": "value"}],
}
CSV = "x,y,kind\n" + "".join(f"{k},{k % 7},{'ash' if k % 3 else 'elm'}\n" for k in range(90))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied: Alembic takes a second."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Iterator[Store]:
    """An empty store in a file of its own."""
    shutil.copy(empty_database, tmp_path / "fallline.db")
    opened = Store(f"sqlite:///{tmp_path / 'fallline.db'}")
    yield opened
    opened.close()


@dataclass(frozen=True)
class Fill:
    """Puts datasets, jobs and versions into a store through its own methods."""

    store: Store

    def dataset(self, name: str = "table", columns: list[dict[str, Any]] | None = None) -> DatasetRecord:
        """A ready one."""
        made = self.store.create_dataset(f"ds_{secrets.token_hex(4)}", name, "csv")
        return self.store.finish_dataset(made.id, {"rows": 90, "bytes": 900, "sha256": SHA, "columns": columns or []})

    def job(
        self,
        name: str = "table",
        dataset: DatasetRecord | None = None,
        metadata: dict[str, str] | None = None,
        model: str | None = "model",
        priority: int = 0,
    ) -> JobRecord:
        """A queued one."""
        spec = {"split": {"validation": 0.2}, "training": {"epochs": 3}}
        used = dataset or self.dataset()
        return self.store.create_job(
            f"job_{secrets.token_hex(4)}", name, used.id, spec, {"steps": 9}, metadata or {}, model, priority
        )

    def version(
        self, model: str, number: int, artifact: str = SHA, signature: dict[str, Any] | None = None
    ) -> JobRecord:
        """A version, of a job that has run and succeeded; the only one that waits."""
        job = self.job(model=model)
        held = self.store.claim_job("filler", 60.0)
        assert held is not None
        assert held.id == job.id
        self.train(job.id, held.lease_epoch, artifact, signature)
        self.store.record_version(job.id, number)
        return self.store.finish_job(job.id, held.lease_epoch, "succeeded")

    def train(
        self, job_id: str, epoch: int = 1, artifact: str = SHA, signature: dict[str, Any] | None = None
    ) -> JobRecord:
        """A claimed job has its result."""
        result = {"weights_sha256": SHA, "parameters": 9}
        about = {"signature": signature or SIGNATURE, "input_example": []}
        return self.store.set_result(job_id, epoch, result, artifact, about)[0]

    def succeed(self, job_id: str, epoch: int = 1) -> JobRecord:
        """A claimed job ends well."""
        self.train(job_id, epoch)
        return self.store.finish_job(job_id, epoch, "succeeded")


@pytest.fixture
def fill(store: Store) -> Fill:
    """Puts things into `store`."""
    return Fill(store)


@dataclass(frozen=True)
class Api:
    """An API that listens on loopback, a client of it, and a store of our own on the same database."""

    settings: Settings
    client: httpx.Client
    store: Store
    app: FastAPI

    @property
    def fill(self) -> Fill:
        """Puts things into the store."""
        return Fill(self.store)

    def upload(self, content: str | bytes = CSV, name: str = "table", **data: str) -> httpx.Response:
        """POST /v1/datasets."""
        files = {"file": ("upload.csv", content, "text/csv")}
        return self.client.post("/v1/datasets", files=files, data={"name": name, **data})

    def folders(self) -> set[str]:
        """What lies in the datasets' folder."""
        return {path.name for path in self.settings.datasets.iterdir()}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Api]:
    """One for the module's tests, served by uvicorn in a thread."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(empty_database, home / "fallline.db")
    settings = Settings.from_environment({"FALLLINE_HOME": str(home), "FALLLINE_MAX_UPLOAD_BYTES": "3000000"})
    with served(replace(settings, max_body_bytes=300_000)) as found:
        yield found


class served:
    """`with served(settings) as api`: uvicorn in a thread, on a free port."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app = create_app(settings)
        config = uvicorn.Config(
            self._app, port=0, log_level="warning", ws="none", timeout_graceful_shutdown=2, server_header=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Api:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive(), "the API did not start"
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, limits=httpx.Limits())
        self._store = Store(self._settings.database_url)
        return Api(self._settings, self._client, self._store, self._app)

    def __exit__(self, *_: object) -> None:
        self._app.state.context.watcher.stop()
        self._server.should_exit = True
        self._thread.join(20)
        self._client.close()
        self._store.close()
        assert not self._thread.is_alive(), "the API did not end"
