"""An HTTP proxy before a server that loses answers: what was asked for has been done, and nobody hears so."""

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LossyProxy(ThreadingHTTPServer):
    """On a free loopback port, before the server on `port`. While it `loses`, so many of the first answers about each
    path are lost, but for those to GET, which changes nothing."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.loses, self.lost = port, 0, Counter[str]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LossyProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        server = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        server.request(self.command, self.path, body, kept)  # with a Host of the server's own
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if self.command != "GET" and self.server.lost[self.path] < self.server.loses:
            self.server.lost[self.path] += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""
