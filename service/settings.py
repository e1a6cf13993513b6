"""Every setting of the service in one table, read from `FALLLINE_*` variables once and frozen.

`SETTINGS` is data, so that the documentation and `fallline doctor` are held against the code by a test.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsError
from worker.fetched import CACHE_BYTES
from worker.placement import STRATEGIES


@dataclass(frozen=True)
class Setting:
    """One variable: its full name, its default as it would be written in the environment, and what it means."""

    name: str
    default: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting("FALLLINE_HOME", "~/.fallline", "folder of the database, datasets, checkpoints, artifacts and logs"),
    Setting("FALLLINE_HOST", "127.0.0.1", "address that the API binds; a loopback address, or see the next one"),
    Setting(
        "FALLLINE_TRUSTED_NETWORK", "false", "true: `FALLLINE_HOST` may be any address, whoever reaches it is trusted"
    ),
    Setting("FALLLINE_PORT", "8000", "port of the API; 0 takes a free one"),
    Setting("FALLLINE_ALLOWED_HOSTS", "", "further host names, separated by commas, by which the API may be called"),
    Setting("FALLLINE_DATABASE_URL", "sqlite:///HOME/fallline.db", "SQLAlchemy URL of the store"),
    Setting("FALLLINE_MLFLOW_PORT", "5000", "port of the embedded MLflow server; 0 takes a free one"),
    Setting("FALLLINE_MLFLOW_TRACKING_URI", "", "an MLflow server to use; empty: an embedded one is started"),
    Setting("FALLLINE_RAY_ADDRESS", "", "a Ray cluster to use; empty: an embedded one is started"),
    Setting("FALLLINE_PLACEMENT", "pack", "where a job's workers go: pack, on as few nodes as have cores; or spread"),
    Setting(
        "FALLLINE_EXCHANGE",
        "auto",
        "how gradients travel: auto, in shared memory where a job is on one node with the service's home, else over "
        "sockets between nodes; or objects, through Ray's object store, which needs no port and takes many times as "
        "long",
    ),
    Setting("FALLLINE_ARTIFACT_ROOT", "HOME/artifacts", "folder of trained models, by hash"),
    Setting(
        "FALLLINE_DISK_RESERVE_MB",
        "min(500, 5 % of the disk)",
        "room that is kept on each disk of the service: with less, jobs are paused until there is half as much again, "
        "and uploads are refused with 507 `disk_full`; 0 switches this off",
    ),
    Setting("FALLLINE_API_KEYS_REQUIRED", "false", "API keys; not supported yet, so nothing but false"),
    Setting(
        "FALLLINE_WORKER_SLOTS",
        "max(16, 4 x cores)",
        "gradient workers that may run at once, on this machine or in the cluster",
    ),
    Setting("FALLLINE_MAX_RUNNING_JOBS", "4", "jobs that train at once; others stay queued"),
    Setting("FALLLINE_MAX_QUEUED_JOBS", "10000", "jobs that may wait; a further one is refused with 429 `queue_full`"),
    Setting(
        "FALLLINE_LEASE_SECONDS", "30", "how long a controller may be silent before another one takes its jobs over"
    ),
    Setting("FALLLINE_TRAINER_ORPHAN_SECONDS", "120", "a trainer that nobody has polled for so long ends"),
    Setting("FALLLINE_MAX_UPLOAD_BYTES", "2147483648", "largest upload, in bytes"),
    Setting(
        "FALLLINE_UPLOAD_WAIT_SECONDS", "10", "how long an upload waits for its check before it answers `processing`"
    ),
    Setting("FALLLINE_MAX_BODY_BYTES", "33554432", "largest request body other than an upload, in bytes"),
    Setting("FALLLINE_MAX_PARAMETERS", "100000000", "largest network, in parameters"),
    Setting("FALLLINE_LOADED_MODELS", "16", "model versions that the API keeps in memory"),
    Setting(
        "FALLLINE_NODE_CACHE_BYTES",
        str(CACHE_BYTES),
        "what a node of a Ray cluster keeps of the datasets that it was sent, in bytes: in its own environment",
    ),
    Setting(
        "FALLLINE_NODE_REST_SECONDS",
        "300",
        "where no job has been for so long, other nodes than the service's own keep no workers ready, so that an "
        "autoscaler may take them away",
    ),
    Setting("FALLLINE_URL", "", "where client and command line look for the service; empty: where it runs on the home"),
    Setting("FALLLINE_LOG_LEVEL", "info", "debug, info, warning or error"),
)
_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


@dataclass(frozen=True)
class Settings:
    """The service's settings. Build it with `from_environment`; folders below `home` are properties."""

    home: Path
    host: str
    port: int
    allowed_hosts: tuple[str, ...]
    database_url: str
    mlflow_port: int
    mlflow_tracking_uri: str | None
    ray_address: str | None
    placement: str
    exchange: str
    artifact_root: Path
    disk_reserve_bytes: int | None  # None: by the disk's size
    worker_slots: int
    max_running_jobs: int
    max_queued_jobs: int
    lease_seconds: float
    trainer_orphan_seconds: float
    max_upload_bytes: int
    upload_wait_seconds: float
    max_body_bytes: int
    max_parameters: int
    loaded_models: int
    node_cache_bytes: int
    node_rest_seconds: float
    log_level: str

    @property
    def datasets(self) -> Path:
        return self.home / "datasets"

    @property
    def prepared(self) -> Path:
        return self.home / "prepared"

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    @property
    def artifacts(self) -> Path:
        return self.artifact_root

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def mlflow(self) -> Path:
        return self.home / "mlflow"

    @property
    def written(self) -> tuple[Path, ...]:
        """The folders that the service writes to; they may lie on several disks."""
        return (
            self.home,
            self.datasets,
            self.prepared,
            self.checkpoints,
            self.artifact_root,
            self.logs,
            self.mlflow,
            *self._database_folder(),
        )

    def _database_folder(self) -> tuple[Path, ...]:
        _, is_sqlite, path = self.database_url.partition("sqlite:///")
        return (Path(path).absolute().parent,) if is_sqlite else ()

    @property
    def mlflow_url(self) -> str:
        """Where MLflow answers: the server that was named, or the embedded one. No trailing slash."""
        return (self.mlflow_tracking_uri or f"http://127.0.0.1:{self.mlflow_port}").rstrip("/")

    def make_folders(self) -> None:
        """Create the home and what lies below it; the home is the user's alone."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.datasets, self.prepared, self.checkpoints, self.artifact_root, self.logs, self.mlflow):
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `FALLLINE_*` from `environ`. An empty value counts as not given.

        Raises SettingsError for an unknown `FALLLINE_` name, a value that does not parse, or a host that is not
        loopback on a network that nobody has called trusted: API keys are not supported yet, so whoever reaches the
        port owns the service.
        """
        _refuse_unknown(environ)
        if _boolean(environ, "FALLLINE_API_KEYS_REQUIRED"):
            raise SettingsError("FALLLINE_API_KEYS_REQUIRED", "true", "not supported yet; leave it at false")
        home = Path(_text(environ, "FALLLINE_HOME")).expanduser().absolute()
        return cls(
            home=home,
            host=_host(_text(environ, "FALLLINE_HOST"), _boolean(environ, "FALLLINE_TRUSTED_NETWORK")),
            port=_integer(environ, "FALLLINE_PORT", 0, 65535),
            allowed_hosts=tuple(
                name.strip().lower() for name in _text(environ, "FALLLINE_ALLOWED_HOSTS").split(",") if name.strip()
            ),
            database_url=environ.get("FALLLINE_DATABASE_URL") or f"sqlite:///{home / 'fallline.db'}",
            mlflow_port=_integer(environ, "FALLLINE_MLFLOW_PORT", 0, 65535),
            mlflow_tracking_uri=_text(environ, "FALLLINE_MLFLOW_TRACKING_URI") or None,
            ray_address=_text(environ, "FALLLINE_RAY_ADDRESS") or None,
            placement=_choice(environ, "FALLLINE_PLACEMENT", STRATEGIES),
            exchange=_choice(environ, "FALLLINE_EXCHANGE", ("auto", "objects")),
            artifact_root=Path(environ.get("FALLLINE_ARTIFACT_ROOT") or home / "artifacts").expanduser().absolute(),
            disk_reserve_bytes=_disk_reserve(environ),
            worker_slots=_worker_slots(environ),
            max_running_jobs=_integer(environ, "FALLLINE_MAX_RUNNING_JOBS", 1, 10_000),
            max_queued_jobs=_integer(environ, "FALLLINE_MAX_QUEUED_JOBS", 1, 10_000_000),
            lease_seconds=_number(environ, "FALLLINE_LEASE_SECONDS"),
            trainer_orphan_seconds=_number(environ, "FALLLINE_TRAINER_ORPHAN_SECONDS"),
            max_upload_bytes=_integer(environ, "FALLLINE_MAX_UPLOAD_BYTES", 1, 2**50),
            upload_wait_seconds=_number(environ, "FALLLINE_UPLOAD_WAIT_SECONDS"),
            max_body_bytes=_integer(environ, "FALLLINE_MAX_BODY_BYTES", 1, 2**40),
            max_parameters=_integer(environ, "FALLLINE_MAX_PARAMETERS", 1, 2**40),
            loaded_models=_integer(environ, "FALLLINE_LOADED_MODELS", 1, 100_000),
            node_cache_bytes=_integer(environ, "FALLLINE_NODE_CACHE_BYTES", 1, 2**60),
            node_rest_seconds=_number(environ, "FALLLINE_NODE_REST_SECONDS"),
            log_level=_choice(environ, "FALLLINE_LOG_LEVEL", ("debug", "info", "warning", "error")),
        )


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """A misspelt setting that is silently ignored costs an evening: refuse it."""
    for name in environ:
        if name.startswith("FALLLINE_") and name not in _DEFAULTS:
            raise SettingsError(name, environ[name], "no such setting; `fallline doctor` lists them")


def _text(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or _DEFAULTS[name]).strip()


def _boolean(environ: Mapping[str, str], name: str) -> bool:
    return _choice(environ, name, ("true", "false")) == "true"


def _choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = _text(environ, name).lower()
    if value not in choices:
        raise SettingsError(name, value, f"expected one of {', '.join(choices)}")
    return value


def _integer(environ: Mapping[str, str], name: str, minimum: int, maximum: int) -> int:
    text = _text(environ, name)
    if not (text.isascii() and text.isdigit() and len(text) < 20) or not minimum <= int(text) <= maximum:
        raise SettingsError(name, text, f"expected an integer between {minimum} and {maximum}")
    return int(text)


def _number(environ: Mapping[str, str], name: str) -> float:
    text = _text(environ, name)
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(name, text, "expected a number of seconds") from None
    if not 0 < value < 1e9:
        raise SettingsError(name, text, "expected a positive number of seconds")
    return value


def _worker_slots(environ: Mapping[str, str]) -> int:
    """More workers than cores is slow, not impossible; hence four times the cores, and 16 on a small machine."""
    if not environ.get("FALLLINE_WORKER_SLOTS"):
        return max(16, 4 * (os.cpu_count() or 1))
    return _integer(environ, "FALLLINE_WORKER_SLOTS", 1, 100_000)


def _disk_reserve(environ: Mapping[str, str]) -> int | None:
    """In bytes; by default a share of each disk (service.disk)."""
    if not environ.get("FALLLINE_DISK_RESERVE_MB"):
        return None
    return _integer(environ, "FALLLINE_DISK_RESERVE_MB", 0, 10**9) * 10**6


def _host(host: str, trusted_network: bool) -> str:
    if host.lower() == "localhost":
        return host.lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise SettingsError("FALLLINE_HOST", host, "expected an IP address to listen on, or localhost") from None
    if not address.is_loopback and not trusted_network:
        raise SettingsError(
            "FALLLINE_HOST",
            host,
            "expected a loopback address: API keys are not supported yet, so whoever reaches another one owns the "
            "service. Where only trusted people and programs can, set FALLLINE_TRUSTED_NETWORK=true",
        )
    return host
