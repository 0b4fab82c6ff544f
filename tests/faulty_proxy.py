"""A proxy in front of an HTTP server that breaks chosen PUTs: cut half way, or carried out and never answered."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CUT, SILENT, BUSY = "cut", "silent", "busy"
Fault = Callable[[str], str]  # path of a PUT -> CUT, SILENT, BUSY or ""


@contextmanager
def faulty_proxy(server: str, fault: Fault) -> Iterator[str]:
    """host:port of a proxy to `server`.

    Args:
        fault: asked once for every PUT. CUT: half the body is passed on, then both connections break. SILENT: the PUT
            is carried out, its answer is lost. BUSY: answered with 503 and not carried out.
    """
    proxy = _Proxy(server, fault)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Proxy(ThreadingHTTPServer):
    def __init__(self, upstream: str, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.fault = upstream, fault


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._pass_on(b"")

    do_HEAD = do_DELETE = do_GET

    def do_POST(self) -> None:
        self._pass_on(self._body())

    def do_PUT(self) -> None:
        body, kind = self._body(), self.server.fault(self.path)
        if kind == CUT:
            self._send_half(body)
        elif kind == BUSY:
            self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        elif kind == SILENT:
            self._ask(body)
        else:
            self._pass_on(body)
            return
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), data

    def _pass_on(self, body: bytes) -> None:
        self._answer(*self._ask(body))

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response(status)
        length = str(len(data))
        for key, value in headers:
            if key.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif key.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_half(self, body: bytes) -> None:
        host, _, port = self.server.upstream.partition(":")
        with socket.create_connection((host, int(port))) as upstream:
            lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in self.headers.items())]
            upstream.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
