"""`fallline serve --only PART`: one part of the service, where something else keeps it running: containers, systemd.

The part takes this process's place, so that whoever started it sends signals to the part and sees its exit code. The
parts meet in the store and on the home, as they do under the supervisor: one API process, any number of controllers
(one works, the others stand by), one MLflow server. Ray's nodes are started by `ray start`.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from service.embedded import Command, mlflow_server, python_module, without_ray
from service.home import ServeError
from service.parts import run_folder
from service.ports import LOOPBACK
from service.settings import Settings


def check_ray_address(address: str) -> None:
    """Raises `ServeError` for what is no address of a Ray cluster's head."""
    if not re.fullmatch(r"[^/:]+:\d+", address):
        raise ServeError(f"FALLLINE_RAY_ADDRESS={address}: expected HOST:PORT of a cluster's head")


def _api(settings: Settings, environ: Mapping[str, str]) -> Command:
    return python_module("service.app", without_ray(environ), settings.home)


def _controller(settings: Settings, environ: Mapping[str, str]) -> Command:
    check_ray_address(settings.ray_address or "")
    return python_module("service.controller", environ, settings.home)


def _mlflow(settings: Settings, environ: Mapping[str, str]) -> Command:
    names = (LOOPBACK, "localhost", *settings.allowed_hosts)
    return mlflow_server(without_ray(environ), settings.mlflow_port, settings.mlflow, settings.host, names)


PARTS: dict[str, Callable[[Settings, Mapping[str, str]], Command]] = {
    "api": _api,
    "controller": _controller,
    "mlflow": _mlflow,
}


def run_only(part: str, settings: Settings, environ: Mapping[str, str]) -> NoReturn:
    """Becomes the part. Raises `ServeError` when its settings do not suffice."""
    command = PARTS[part](settings, environ)
    settings.make_folders()
    run_folder(settings.home).mkdir(exist_ok=True)
    os.chdir(command.folder)
    os.execve(command.arguments[0], command.arguments, command.environment)
