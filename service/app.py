"""The API process: FastAPI over the store, predictions in process. It imports neither Ray nor MLflow."""

import asyncio
import logging
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from service import error_answers, uploads, warm_start
from service.context import Context
from service.errors import SettingsError
from service.migrate import migrate
from service.predictor import Predictor
from service.routes import checkpoints, datasets, events, health, jobs, models, predictions, unsupported
from service.security import Guard
from service.settings import Settings
from service.store import Store
from service.watcher import Watcher

SHUTDOWN_S = 2
OPEN_FILES = 65_536  # each open event stream is one
BUSY_S = 5.0  # a caller would rather hear soon that the store is locked


def create_app(settings: Settings) -> FastAPI:
    """The application. Its start applies migrations and sweeps what a crash left of uploads."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.make_folders()
        migrate(settings.database_url)
        store = Store(settings.database_url, BUSY_S)
        uploads.sweep(store, settings.datasets)
        warm_start.sweep(store, settings.checkpoints)
        predictor = Predictor(store, settings.artifacts, settings.loaded_models)
        watcher = Watcher(store, predictor.forget_deployments)
        app.state.context = Context(settings, store, predictor, watcher)
        watching = asyncio.create_task(watcher.run())
        try:
            yield
        finally:
            watcher.stop()
            await watching
            store.close()

    app = FastAPI(title="Fall Line", summary="Distributed minibatch-SGD training as a service", lifespan=lifespan)
    app.add_middleware(
        Guard,
        names=frozenset(settings.allowed_hosts),
        max_body=settings.max_body_bytes,
        max_upload=settings.max_upload_bytes,
    )
    error_answers.install(app)
    for routes in (datasets, jobs, checkpoints, events, models, predictions, health, unsupported):
        app.include_router(routes.router)
    return app


class Server(uvicorn.Server):
    """uvicorn waits for open event streams at its end: they are told first."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        application = self.config.app
        if isinstance(application, FastAPI) and hasattr(application.state, "context"):
            application.state.context.watcher.stop()
        super().handle_exit(sig, frame)


def main() -> int:
    """`python -m service.app`: serve until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _allow_open_files()
    threadpool_limits(1)  # rows are few and requests many: BLAS threads only get into each other's way
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    Server(config).run()
    return 0


def _allow_open_files() -> None:
    """As many as the machine's administrator allows, which is more than a shell begins with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


if __name__ == "__main__":
    sys.exit(main())
