"""The viewer's page and the files that it shows, served to a browser on this machine.

    with Server(folder, [("lake.aic", functools.partial(read_aic, "lake.aic"))]) as server:
        print(server.address)
        server.serve_forever()

A port of the loopback interface is open to every user of the machine and, by way of the browser, to
every page of the web. So all addresses begin with a secret that is new each time, and only requests
that name this host are answered: a page elsewhere whose name is made to lead here names its own. What
is served is what was in the page's folder at the start, and the files by their numbers; no path of a
request ever becomes one of the file system.
"""

import os
import secrets
import socketserver
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from aiocodec.errors import AicError, RuntimeMissing

HOST = "127.0.0.1"

# The registry of the system, which the standard library asks, has other ideas of some of these.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the secret is for nobody else
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """A server of one page and of numbered files; `serve_forever` runs it.

    Args:
        page: folder of the built viewer.
        files: name and content of every file; the content is asked for anew with every request, and
            an AicError instead is what the browser is told.
        port: 0 for any that is free.

    Raises RuntimeMissing where the viewer was not built, OSError where the port cannot be had.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere two programs could have the same port
    request_queue_size = 64  # a page asks for all that it consists of at once

    def __init__(
        self, page: Path, files: Sequence[tuple[str, Callable[[], bytes]]], port: int = 0
    ) -> None:
        self.page = {
            path.relative_to(page).as_posix(): path for path in page.rglob("*") if path.is_file()
        }
        if "index.html" not in self.page:
            raise RuntimeMissing(
                "the viewer is not built; `npm ci && npm run build` in the folder viewer/ does it"
            )
        self.page[""] = self.page["index.html"]
        self.files = files
        self.secret = secrets.token_urlsafe()
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Take the port, without asking the network for the name of this host."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def address(self) -> str:
        """That of the page with all files, in ASCII."""
        # The fragment is decoded once to addresses, and these again to names.
        sources = (
            f"files/{i}/{quote(os.fsencode(name), safe='')}"
            for i, (name, _) in enumerate(self.files)
        )
        fragment = "&".join(f"src={quote(source)}" for source in sources)
        return f"http://{HOST}:{self.server_port}/{self.secret}/index.html#{fragment}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away."""
        if os.environ.get("AIC_DEBUG"):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "aiocodec", ""
    timeout = 60  # seconds, for whoever connects and asks for nothing

    def do_GET(self) -> None:
        """Answer with a file of the page or of the user's."""
        port = self.server.server_port
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            self._send(HTTPStatus.FORBIDDEN, b"this is not the host that was asked for\n")
            return
        parts = self.path.partition("?")[0].split("/", 2)
        secret = self.server.secret.encode()
        if len(parts) < 3 or not secrets.compare_digest(parts[1].encode(), secret):
            self._send(HTTPStatus.NOT_FOUND, b"there is no such page\n")
            return
        try:
            kind, data = self._content(unquote(parts[2]))
        except (AicError, OSError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else fault
            self._send(HTTPStatus.NOT_FOUND, f"{reason}\n".encode())
        else:
            self._send(HTTPStatus.OK, data, kind)

    do_HEAD = do_GET

    def _content(self, path: str) -> tuple[str, bytes]:
        """The type and the bytes of what has this path behind the secret; AicError or OSError where
        there is none."""
        if path in self.server.page:
            file = self.server.page[path]
            return _TYPES.get(file.suffix, "application/octet-stream"), file.read_bytes()
        folder, number, *_ = [*path.split("/"), ""]
        known = [str(i) for i in range(len(self.server.files))]
        if folder != "files" or number not in known:
            raise AicError("there is no such file")
        return "image/x-aic", self.server.files[int(number)][1]()

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD alone\n")

    do_DELETE = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_TRACE = do_CONNECT = _refuse

    def _send(self, status: HTTPStatus, body: bytes, kind: str = _TYPES[".txt"]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """Whatever is answered, these headers come with it."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants to read it."""
