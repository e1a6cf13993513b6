"""`fallline doctor`: what the service needs of this machine, and whether it runs. Each finding says what to do."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service import disk
from service.client import FallLine, FallLineError, find_url
from service.database import wal_is_safe
from service.errors import SettingsError
from service.settings import SETTINGS, Settings

LEAST_FREE_BYTES = 2 * 2**30
LEAST_SHARED_BYTES = 600 * 2**20


@dataclass(frozen=True)
class Finding:
    """One check: whether it is well, and what was found or is to be done."""

    check: str
    ok: bool
    message: str


def examine(environ: Mapping[str, str]) -> list[Finding]:
    """All checks, in an order in which a later one makes sense when the earlier ones are well."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = [Finding("Python", sys.version_info >= (3, 11), f"{version}; 3.11 or newer is needed")]
    try:
        settings = Settings.from_environment(environ)
    except SettingsError as error:
        names = ", ".join(setting.name for setting in SETTINGS)
        return [*found, Finding("settings", False, f"{error}. The settings: {names}")]
    given = sorted(name for name in environ if name.startswith("FALLLINE_"))
    found.append(Finding("settings", True, f"from the environment: {', '.join(given)}" if given else "all defaults"))
    journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info) else "a rollback journal (its WAL mode can corrupt)"
    found.append(Finding("SQLite", True, f"{sqlite3.sqlite_version}, with {journal}"))
    found += [_home(settings.home), _room("disk", settings.home, LEAST_FREE_BYTES), _reserve(settings)]
    found.append(_room("shared memory", Path("/dev/shm"), LEAST_SHARED_BYTES))
    found.append(_service(find_url(environ)))
    return found


def _home(home: Path) -> Finding:
    place = home
    while not place.exists():
        place = place.parent
    writable = os.access(place, os.W_OK)
    return Finding("home", writable, f"{home}" if writable else f"{home} cannot be written; set FALLLINE_HOME")


def _room(what: str, path: Path, least: int) -> Finding:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    return Finding(what, free >= least, f"{free / 2**30:.1f} GiB free at {path}; at least {least / 2**30:.1f} GiB")


def _reserve(settings: Settings) -> Finding:
    """With less than it the service pauses its jobs."""
    disks = set(disk.look(settings.written).values())
    short = disk.shortage(disks, settings.disk_reserve_bytes, None)
    kept = (f"{disk.in_mb(each.reserve(settings.disk_reserve_bytes))} at {each.folder}" for each in disks)
    return Finding("disk reserve", short is None, short or f"jobs run while more than this is free: {', '.join(kept)}")


def _service(url: str) -> Finding:
    try:
        with FallLine(url, timeout_s=5.0) as client:
            health = client.health()
    except (FallLineError, ValueError) as error:
        return Finding("service", False, f"{error}; `fallline serve` starts it")
    return Finding("service", bool(health["ready"]), f"{url} is up" if health["ready"] else str(health["message"]))
