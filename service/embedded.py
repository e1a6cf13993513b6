"""The commands of what the service brings along: a Ray head and an MLflow server, for this machine alone.

Every port is a free one or a setting, every address loopback, every path absolute: several services live side by side.
"""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.ports import LOOPBACK, free_port

OBJECT_STORE_BYTES = (128 * 1024**2, 2 * 1024**3)  # least and most; taken as it is used, not at the start
BLAS_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Command:
    """One process to start. `remove`: a folder of its own that is gone when it has ended."""

    arguments: list[str]
    environment: dict[str, str]
    folder: Path
    remove: Path | None = None


def ray_environment(environ: Mapping[str, str], token: str) -> dict[str, str]:
    """The environment of the Ray head, and of the controller, its driver: they must agree in all of it.

    Settings of somebody else's Ray (RAY_ADDRESS and the like) are left out; what else there is goes on to the workers,
    OPENBLAS_CORETYPE and NPY_DISABLE_CPU_FEATURES among it. One BLAS thread a process: NumPy reads the
    variables when it is imported, in Ray's workers before any code of ours. RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 is what
    makes Ray keep to loopback: without it, it replaces 127.0.0.1 by the machine's outward address, on Linux too.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith("RAY_")}
    return (
        kept
        | BLAS_THREADS
        | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # its jobs live on: nothing is to be drained
        }
    )


def new_token() -> str:
    """A token for a Ray cluster of ours: a network client without it is refused."""
    return secrets.token_hex(32)


def object_store_bytes() -> int:
    """The object store's size: half of what /dev/shm has free, within bounds."""
    least, most = OBJECT_STORE_BYTES
    return max(least, min(most, shutil.disk_usage("/dev/shm").free // 2))


def ray_head(environment: Mapping[str, str], port: int, folder: Path, worker_slots: int) -> Command:
    """A Ray head on `port`. `folder` must be short: below it lie sockets, whose paths end near 107 bytes.

    What runs there has no business with the store, whose URL may hold a password.
    Ports that default to fixed numbers are given: the dashboard's (it does not listen, but its port must be free), the
    agent's, and the range of the workers' (0: any free one).
    """
    options = {
        "node-ip-address": LOOPBACK,
        "port": port,
        "dashboard-port": free_port(),
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "include-dashboard": "false",
        "include-log-monitor": "false",
        "object-store-memory": object_store_bytes(),
        "resources": json.dumps({"worker_slots": worker_slots}),
        "temp-dir": folder,
    }
    # Beside the interpreter: `python -m ray` does not exist, and a PATH may hold another Ray.
    ray = Path(sys.executable).with_name("ray")
    arguments = [str(ray), "start", "--head", "--block", "--disable-usage-stats", "--no-monitor"]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    kept = {name: value for name, value in environment.items() if name != "FALLLINE_DATABASE_URL"}
    return Command(arguments, kept, folder, remove=folder)


def mlflow_server(
    environ: Mapping[str, str],
    port: int,
    folder: Path,
    host: str = LOOPBACK,
    names: Iterable[str] = (LOOPBACK, "localhost"),
) -> Command:
    """An MLflow server on `host` and `port` that keeps all it has below `folder`.

    It runs there too: MLflow's defaults are relative to the working directory, and an `mlruns` folder of somebody's
    there would change them. Only requests to `names`, and from their pages, are answered.
    """
    hosts = [f"{name}:{port}" for name in names]
    options = {
        "host": host,
        "port": port,
        "workers": 1,
        "backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
        "artifacts-destination": folder / "artifacts",
        "allowed-hosts": ",".join(hosts),
        "cors-allowed-origins": ",".join(f"http://{host}" for host in hosts),
    }
    arguments = [sys.executable, "-P", "-W", "ignore", "-m", "mlflow", "server"]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    environment = {name: value for name, value in environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Command(arguments, environment, folder)


def python_module(module: str, environment: Mapping[str, str], folder: Path) -> Command:
    """One of our own processes. -P: a file in the working directory that is named like a package shadows nothing."""
    unbuffered = {"PYTHONUNBUFFERED": "1"}
    return Command([sys.executable, "-P", "-m", module], dict(environment) | unbuffered, folder)


def without_ray(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of what has no business with Ray: no token either."""
    return {name: value for name, value in environ.items() if not name.startswith("RAY_")}


def own_environment() -> dict[str, str]:
    """This process's environment, to build others from."""
    return dict(os.environ)
