"""Ports of this machine: free ones, taken ones."""

import socket

from service.home import ServeError

LOOPBACK = "127.0.0.1"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_port(host: str = LOOPBACK) -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket(_family(host)) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Can `port` be listened on? One that closed connections still linger on can."""
    with socket.socket(_family(host)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


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
