"""A real HTTP server on this machine that misbehaves in each way that servers do, for tests of downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DRIP = 1 << 15


@dataclass
class Behaviour:
    """How the server answers, and what it was asked."""

    content: bytes = b""
    paths: dict[str, bytes] | None = None
    """What each path has, instead of `content`; another is not found."""
    ranges: bool = True
    etag: str = '"v1"'
    modified: str = ""
    if_range: bool = True
    breaks_after: list[int] = field(default_factory=list)
    """Bytes of each answer after which the connection breaks; then it holds."""
    status: int = 200
    hangs: bool = False
    drip_s: float = 0.0
    """How long it rests after each `DRIP` bytes, so that there is time to cancel."""
    length: bool = True
    changes_to: bytes | None = None
    """What the file is after the first broken answer."""
    asked: list[str | None] = field(default_factory=list)
    """The Range of each request."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        wanted = self.headers.get("Range")
        behaviour.asked.append(wanted)
        if behaviour.hangs:
            self.server.released.wait(5)  # type: ignore[attr-defined]
            return
        if behaviour.status != 200:
            self.send_error(behaviour.status)
            return
        content, start = behaviour.content, 0
        if behaviour.paths is not None:
            if self.path not in behaviour.paths:
                self.send_error(404)
                return
            content = behaviour.paths[self.path]
        if wanted and behaviour.ranges:
            condition = self.headers.get("If-Range")
            if not behaviour.if_range or condition in (None, behaviour.etag, behaviour.modified):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if behaviour.length:
            self.send_header("Content-Length", str(len(content) - start))
        else:
            self.send_header("Connection", "close")
        if behaviour.etag:
            self.send_header("ETag", behaviour.etag)
        if behaviour.modified:
            self.send_header("Last-Modified", behaviour.modified)
        self.end_headers()
        rest = content[start:]
        if behaviour.breaks_after:
            rest = rest[: behaviour.breaks_after.pop(0)]
            self.close_connection = True
            if behaviour.changes_to is not None:
                behaviour.content, behaviour.etag, behaviour.modified = behaviour.changes_to, '"v2"', ""
        with suppress(ConnectionError):  # a client that cancels hangs up
            for first in range(0, len(rest), DRIP) if behaviour.drip_s else ():
                self.wfile.write(rest[first : first + DRIP])
                time.sleep(behaviour.drip_s)
            if not behaviour.drip_s:
                self.wfile.write(rest)
        if not behaviour.length:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.behaviour, server.released = behaviour, threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/weights.bin"
    finally:
        server.released.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
