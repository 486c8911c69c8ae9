"""Texts that a server could take for paths: none leads out, wherever a client may send it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from danlu.api import Permission
from danlu.server.auth import App
from tests.api.attacks.sending import FILES, Document, Flaw, Sent, Text, ask, prepared, said_in, some, watched, weakened
from tests.api.edge import Api

CANARY = b"canary-7c1e"
UPS = ["../", "..\\", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "%252e%252e%252f", "..%c0%af", "%c0%ae%c0%ae/",
       "..%ef%bc%8f", "..;/", "....//", ".%00./", "..%00/", "%uff0e%uff0e/", "\u2024\u2024/", "..%5c", "..%255c",
       "/../..", "//../"]  # fmt: skip
ENDS = ["", "%00", "%00.log", "?", "#", ";x=1", "%20", "/.", "%0a", "."]
EACH = 3
"""How many ways of writing a path are tried at each text, beside one of the plainest."""


def plainest(canary: Path) -> list[str]:
    place = str(canary).lstrip("/")
    return [
        "../" * 8 + place,
        str(canary),
        f"file://{canary}",
        "..%2f" * 8 + place,
        f"../{canary.parent.name}/{canary.name}",
    ]


def corpus(canary: Path) -> list[str]:
    """Returns ways of writing a file's path, as they stand in an address."""
    place = str(canary).lstrip("/")
    found = [up * 8 + place + end for up, end in product(UPS, ENDS)]
    found += [*plainest(canary), "/" + str(canary), "%2f" + place, "%252f" + place, f"file:{canary}",
              f"FILE:///{place}", f"\\\\localhost\\{place}", quote(str(canary), safe=""), f"{canary}-evil/../{canary.name}",
              f"~/{place}", "%7e/" + place, f"http://127.0.0.1/{place}", f"sha256:{'../' * 8}{place}"]  # fmt: skip
    return [text.replace(" ", "%20") for text in found]


@dataclass(frozen=True)
class Outside:
    """A file beside the data folder, in a folder whose name begins as the data folder's does."""

    canary: Path

    def ways(self, text: Text) -> list[str]:
        every = corpus(self.canary)
        assert len(every) >= 200
        return [*some(text, plainest(self.canary), 1), *some(text, every, EACH)]

    def check(self, app: App, document: Document, texts: list[Text], ways: list[str] | None = None) -> None:
        """Asks for the canary by each text, with every method where it is a path's; raises where anybody went near it."""
        asked = []
        for text in texts:
            methods = ("GET", "PUT", "DELETE") if text.place == "path" else (text.operation.method,)
            for way, method in product(ways or self.ways(text), methods):
                written = way if text.place in ("path", "query") else unquote(way)
                asked.append(document.request(text, written, method))
        with watched() as seen:
            answers = ask(app, document.api.tokens["admin"], asked)
        for sent, got in zip(asked, answers, strict=True):
            assert CANARY not in got.body, sent
        assert self.canary.read_bytes() == CANARY
        assert [entry.name for entry in self.canary.parent.iterdir()] == [self.canary.name]
        assert not seen.about(self.canary.parent.name, *FILES)


@pytest.fixture
def outside(api: Api) -> Outside:
    folder = Path(f"{api.folder}-evil")
    folder.mkdir()
    made = Outside(folder / "canary")
    made.canary.write_bytes(CANARY)
    return made


@pytest.mark.parametrize("place", ["path", "query", "header", "body"])
def test_no_text_leads_out(api: Api, outside: Outside, place: str) -> None:
    document = prepared(api)
    texts = [text for text in document.texts() if text.place == place]
    assert len(texts) >= {"path": 30, "query": 15, "header": 100, "body": 50}[place]
    outside.check(api.gate, document, texts)


Opened = Callable[[Path, str], Path]


def joined(root: Path, said: str) -> Path:
    return root / said


def beginning_alike(root: Path, said: str) -> Path:
    """The check of CVE-2026-35397: a neighbour's name begins in the same way."""
    found = (root / said).resolve()
    if not str(found).startswith(str(root)):
        raise PermissionError(said)
    return found


def decoded_twice(root: Path, said: str) -> Path:
    return root / unquote(said)


def after_its_scheme(root: Path, said: str) -> Path:
    return root / said.removeprefix("file://")


WEAK = [joined, beginning_alike, decoded_twice, after_its_scheme]


@pytest.mark.parametrize("place", ["path", "query", "header", "body"])
def test_a_way_out_would_be_found(api: Api, outside: Outside, place: str) -> None:
    """A server that takes texts for paths, in four ways that peers did: the check above finds each."""
    document = prepared(api)
    asked = [text for text in document.texts() if text.operation.permission is not Permission.ATTEMPT]
    texts = [text for text in asked if text.place == place][:1]
    for opened, harm in product(WEAK, ("read", "write", "remove")):
        outside.canary.write_bytes(CANARY)
        with pytest.raises((AssertionError, FileNotFoundError)):
            outside.check(weakened(careless(api.folder, opened, harm)), document, texts, plainest(outside.canary))


def careless(root: Path, opened: Opened, harm: str) -> Flaw:
    def flaw(sent: Sent) -> bytes | None:
        for said in said_in(sent):
            with contextlib.suppress(OSError, ValueError):
                path = opened(root, said)
                if path.is_file() and harm == "read":
                    return path.read_bytes()
                if path.is_file() and harm == "write":
                    path.write_bytes(b"")
                elif path.is_file():
                    path.unlink()
        return None

    return flaw
