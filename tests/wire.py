"""A small server that speaks the wire, for tests of the client, and a store of blobs that answers on it."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from danlu.api.bodies import Addresses, AddressesAndTrees, Received, Splices, Stored
from danlu.domain.splices import spliced
from danlu.domain.trees import address_of, decode, unpack
from danlu.errors import Conflict, InvalidRequest, NotFound


class Wire:
    """A server whose answers a test sets; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = lambda handler, _body: reply(handler, 404, b"")
        wire = self

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                wire.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                wire.answer(self, zlib.decompress(body) if self.headers.get("Content-Encoding") == "deflate" else body)

            do_GET = do_PUT = do_POST = do_DELETE = serve  # noqa: N815 - the library's names

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, content: bytes, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def in_turn(*answers: tuple[int, bytes]) -> Callable[[BaseHTTPRequestHandler, bytes], None]:
    """Answers one after the other; the last one for ever."""
    left = list(answers)
    return lambda handler, _body: reply(handler, *(left.pop(0) if len(left) > 1 else left[0]))


def problem(error: Exception, request_id: str = "") -> bytes:
    return json.dumps({**error.to_problem(), "request_id": request_id}).encode()


class Store:
    """Answers as the platform's blobs do."""

    def __init__(self, wire: Wire) -> None:
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self._wire = wire

    def __call__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        method, path = handler.command, urlsplit(handler.path).path
        address = path.removesuffix("/received").rpartition("/")[2]
        if path == "/v1/blobs/missing":
            asked = AddressesAndTrees.model_validate_json(body)
            absent = {a for a in asked.addresses if a not in self.blobs}.union(*map(self.below, asked.trees))
            reply(handler, 200, Addresses(addresses=tuple(absent)).model_dump_json().encode())
        elif path == "/v1/blobs/splices":
            self.keep(
                handler,
                [
                    (one.address, spliced(self.blobs[one.base], one))
                    for one in Splices.model_validate_json(body).splices
                ],
            )
        elif path.endswith("/received"):
            self.piece(handler, address, body if method == "PUT" else None)
        elif method == "GET" and address not in self.blobs:
            reply(handler, 404, problem(NotFound()))
        elif method == "GET":
            reply(handler, 200, self.blobs[address], "application/octet-stream")
        else:
            self.keep(handler, list(unpack(body)) if method == "POST" else [(address, body)])

    def below(self, address: str) -> set[str]:
        if address not in self.blobs:
            return {address}
        entries = decode(self.blobs[address])
        files = {e.address for e in entries if e.kind == "file" and e.address not in self.blobs}
        return files.union(*(self.below(e.address) for e in entries if e.kind == "dir"))

    def piece(self, handler: BaseHTTPRequestHandler, address: str, piece: bytes | None) -> None:
        arrived = self.parts.get(address, self.blobs.get(address, b""))
        if piece is not None:
            query = dict(parse_qsl(urlsplit(handler.path).query))
            if int(query.get("offset", "0")) != len(arrived):
                reply(handler, 409, problem(Conflict("not there")))
                return
            self.parts[address] = arrived = arrived + piece
            if len(arrived) == int(query["size_bytes"]):
                whole = self.parts.pop(address)
                if address_of(whole) != address:
                    reply(handler, 400, problem(InvalidRequest("these are not those bytes")))
                    return
                self.blobs[address] = whole
        reply(handler, 200, Received(size_bytes=len(arrived)).model_dump_json().encode())

    def keep(self, handler: BaseHTTPRequestHandler, found: list[tuple[str, bytes]]) -> None:
        for address, blob in found:
            if address_of(blob) != address:
                reply(handler, 400, problem(InvalidRequest("these are not those bytes")))
                return
            self.blobs[address] = blob
        size = sum(len(blob) for _, blob in found)
        reply(handler, 201, Stored(blobs=len(found), size_bytes=size).model_dump_json().encode())
