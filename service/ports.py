"""Ports of this machine: free ones, taken ones, and those that are kept for who is to serve there."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from service.home import ServeError

LOOPBACK = "127.0.0.1"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_port(host: str = LOOPBACK) -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket(_family(host)) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


@contextmanager
def held(host: str, port: int) -> Iterator[None]:
    """Meanwhile nobody who asks for any free port gets this one, however often who serves there starts again.
    ServeError: it cannot be bound.

    It is bound with SO_REUSEADDR, and not listened on. A server, which sets that as well for the sake of connections
    that linger, binds it all the same (Linux).
    """
    with socket.socket(_family(host)) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port))
        except OSError as error:
            raise ServeError(f"port {port} of {host}: {error.strerror}") from error
        yield


def is_free(host: str, port: int) -> bool:
    """Can `port` be listened on? One that closed connections still linger on can."""
    try:
        with held(host, port):
            return True
    except ServeError:
        return False


def listens(host: str, port: int) -> bool:
    """Does somebody accept connections there?"""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def reachable(host: str) -> str:
    """`host` as a URL of this machine names it: who binds all addresses is called by the loopback one."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def chosen_port(setting: str, host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises `ServeError`, which names the setting, when it is taken."""
    if port == 0:
        return free_port(host)
    if not is_free(host, port):
        raise ServeError(f"port {port} is in use: set {setting} to another, or to 0 for a free one")
    return port
