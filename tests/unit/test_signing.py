"""Signatures: what was signed is proven, what was changed is refused, and others compute the same bytes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from http_message_signatures import HTTPMessageVerifier, algorithms
from http_message_signatures.resolvers import MappingKeyResolver
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.signing import (
    EXPIRES_S,
    SKEW_S,
    BadSignature,
    Claim,
    Message,
    claim,
    content_digest,
    sign,
)
from danlu.domain.signing import (
    base as base_of,
)

SECRET = b"danlu_sk_" + b"0" * 64
KEY = "k00000000000000000000000000"
NONCE = base64.b64encode(bytes(range(16))).decode()
NOW_S = 1_800_000_000
BODY = b'{"command": ["true"]}'
MUTATIONS = 100_000

PLAIN = Message(
    "PUT", "danlu.example:7070", "/v1/jobs/j%41b", "project=a&b=%20c+d",
    (("content-type", "application/json"), ("danlu-project", "vision"), ("accept", "*/*"), ("idempotency-key", "one"),
     ("last-event-id", "7"), ("content-encoding", "deflate"), ("content-digest", content_digest(BODY))),
)  # fmt: skip


def with_headers(message: Message, *headers: tuple[str, str]) -> Message:
    return replace(message, headers=(*message.headers, *headers))


def signed(message: Message = PLAIN, *, nonce: str = NONCE, key: str = KEY, secret: bytes = SECRET) -> Message:
    made = sign(message, key, secret, created_s=NOW_S, nonce=nonce)
    return with_headers(message, *((name.lower(), value) for name, value in made.items()))


def by_hand(message: Message, components: str, parameters: str, *, label: str = "danlu") -> Message:
    """Returns a request that is signed rightly, whatever is covered and said."""
    given = f"({components}){parameters}"
    names = [part.partition(";")[0].strip('"') for part in components.split(" ")] if components else []
    there = dict(message.headers)
    derived = {"@method": message.method, "@authority": message.authority, "@path": message.path,
               "@query": "?" + message.query}  # fmt: skip
    parts = components.split(" ") if components else []
    lines = [f"{part}: {derived.get(name, there.get(name, ''))}\n" for part, name in zip(parts, names, strict=True)]
    text = "".join(lines) + f'"@signature-params": {given}'
    mac = base64.b64encode(hmac.digest(SECRET, text.encode(), "sha256")).decode()
    return with_headers(message, ("signature-input", f"{label}={given}"), ("signature", f"{label}=:{mac}:"))


COMPONENTS = " ".join(
    f'"{name}"' for name in ("@method", "@authority", "@path", "@query", "content-digest", "content-encoding",
                             "content-type", "danlu-project", "idempotency-key", "last-event-id")
)  # fmt: skip


def parameters(**changed: str | None) -> str:
    """Returns a signature's parameters as they are written; None leaves one out."""
    given: dict[str, str | None] = {
        "created": str(NOW_S), "expires": str(NOW_S + EXPIRES_S), "keyid": f'"{KEY}"', "alg": '"hmac-sha256"',
        "nonce": f'"{NONCE}"', "tag": '"danlu-v1"', **changed,
    }  # fmt: skip
    return "".join(f";{name}={value}" for name, value in given.items() if value is not None)


def accepted(message: Message, *, once: bool = True, secret: bytes = SECRET, body: bytes = BODY) -> bool:
    """Says whether a request would get in: all that is checked of it, but for whose the key is."""
    try:
        found = claim(message, once=once)
    except BadSignature:
        return False
    digest = hashlib.sha256(body if body else b"").digest()
    return found.key_id == KEY and found.proven(secret) and found.current(NOW_S) and found.digest in (digest, None)


TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\ '), min_size=1, max_size=40)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]), TOKENS, VALUES, VALUES, VALUES,
    st.binary(max_size=200),
    st.dictionaries(st.sampled_from(["danlu-project", "danlu-a", "content-type", "x-other", "last-event-id"]), VALUES),
)  # fmt: skip
def test_what_was_signed_is_proven(
    method: str, authority: str, path: str, query: str, secret: str, body: bytes, headers: dict[str, str]
) -> None:
    message = Message(
        method, authority, "/" + path, query, (*headers.items(), ("content-digest", content_digest(body)))
    )
    found = claim(signed(message, secret=b"s" + secret.encode()), once=True)
    assert (found.key_id, found.nonce, found.created_s) == (KEY, NONCE, NOW_S)
    assert found.proven(b"s" + secret.encode())
    assert not found.proven(b"t" + secret.encode())
    assert found.digest == hashlib.sha256(body).digest()


def test_the_unchanged_one_is_accepted() -> None:
    """All that follows changes this one, and says something because this one is let in."""
    assert accepted(signed())
    assert accepted(by_hand(PLAIN, COMPONENTS, parameters()))
    assert not accepted(signed(), body=BODY + b" ")
    assert not accepted(signed(), secret=SECRET + b"0")


def _fields(message: Message) -> dict[str, str]:
    named = {f"header {name}": value for name, value in message.headers if name != "accept"}
    names = {f"name {name}": name for name, _ in message.headers if name != "accept"}
    return {"method": message.method, "authority": message.authority, "path": message.path, "query": message.query,
            **named, **names}  # fmt: skip


def _replaced(message: Message, field: str, value: str) -> Message:
    kind, _, name = field.partition(" ")
    if kind == "header":
        return replace(message, headers=tuple((k, value if k == name else v) for k, v in message.headers))
    if kind == "name":
        return replace(message, headers=tuple((value if k == name else k, v) for k, v in message.headers))
    return replace(message, **{kind: value})


def _mutated(text: str, at: int, rng: random.Random) -> Iterator[str]:
    """Yields a text with its byte at some place changed in every bit, left out, doubled, and other bytes in and at it."""
    for bit in range(8):
        yield text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]
    yield text[:at] + text[at + 1 :]
    yield text[:at] + text[at] + text[at:]
    yield text[:at]
    yield text[at + 1 :]
    yield text[:at] + text[at].swapcase() + text[at + 1 :]
    yield text[:at] + f"%{ord(text[at]):02x}" + text[at + 1 :]
    for other in ' \t,;:="\\/?#%+.@\0\r\n\x85\xa0':
        yield text[:at] + other + text[at:]
    while True:
        yield text[:at] + chr(rng.randrange(256)) + text[at + 1 :]


def _means_the_same(field: str, old: str, new: str) -> bool:
    if field == "authority":
        return old.lower() == new.lower()
    return new.strip(" \t") == old if field.startswith("header") else new == old


def test_each_covered_byte_is_held_against_its_signature() -> None:
    message, rng, tried = signed(), random.Random(9421), 0
    fields = _fields(message)
    each = -(-MUTATIONS // sum(map(len, fields.values())))
    for field, text in fields.items():
        for at in range(len(text)):
            for count, mutated in enumerate(_mutated(text, at, rng)):
                if count > each:
                    break
                if _means_the_same(field, text, mutated):
                    continue
                tried += 1
                assert not accepted(_replaced(message, field, mutated)), (field, at, mutated)
    assert tried >= MUTATIONS


def test_each_bit_of_the_signature_counts() -> None:
    found = claim(signed(), once=True)
    for bit in range(256):
        changed = bytearray(found.signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not replace(found, signature=bytes(changed)).proven(SECRET)
    for cut in range(32):
        assert not replace(found, signature=found.signature[:cut]).proven(SECRET)


@pytest.mark.parametrize("name", [name for name, _ in PLAIN.headers if name != "accept"])
def test_a_header_is_there_once(name: str) -> None:
    message = signed()
    value = dict(message.headers)[name]
    assert not accepted(with_headers(message, (name, value)))
    assert not accepted(with_headers(message, (name, "other")))
    assert not accepted(replace(message, headers=((name, ""), *message.headers)))


def test_headers_that_change_nothing_may_come_on_the_way() -> None:
    assert accepted(with_headers(signed(), ("via", "proxy"), ("x-forwarded-for", "127.0.0.1"), ("accept", "text/html")))


@pytest.mark.parametrize("name", ["danlu-project", "danlu-anything", "danlu-", "idempotency-key", "last-event-id",
                                  "content-type", "content-encoding", "content-digest"])  # fmt: skip
def test_what_is_acted_on_is_covered(name: str) -> None:
    bare = replace(PLAIN, method="GET", headers=())
    assert accepted(signed(bare, nonce=""), once=False)
    assert not accepted(with_headers(signed(bare, nonce=""), (name, "x")), once=False)


@pytest.mark.parametrize("name", COMPONENTS.split(" "))
def test_no_component_may_be_left_out(name: str) -> None:
    fewer = " ".join(part for part in COMPONENTS.split(" ") if part != name)
    assert not accepted(by_hand(PLAIN, fewer, parameters()))


@pytest.mark.parametrize(
    "components",
    [
        "", COMPONENTS + ' "@method"', COMPONENTS + ' "danlu-project"', COMPONENTS + ' "danlu-not-there"',
        COMPONENTS + ' "@status"', COMPONENTS + ' "@signature-params"', COMPONENTS + ' "@target-uri"',
        COMPONENTS + ' "@query-param"', COMPONENTS.replace('"danlu-project"', '"danlu-project";bs'),
        COMPONENTS.replace('"danlu-project"', '"danlu-project";sf'),
        COMPONENTS.replace('"danlu-project"', '"danlu-project";req'),
        COMPONENTS.replace('"danlu-project"', '"danlu-project";tr'), COMPONENTS.replace('"@path"', '"@path";bs'),
        COMPONENTS.replace('"content-digest"', '"content-digest";key="sha-256"'),
        COMPONENTS.replace('"danlu-project"', '"Danlu-Project"'), COMPONENTS.replace('"@query"', "@query"),
        COMPONENTS.replace(" ", "  "), COMPONENTS.replace(" ", "\t"), COMPONENTS + " ", " " + COMPONENTS,
        COMPONENTS + ' "x"' * 40, COMPONENTS + f' "{"x" * 70}"',
    ],
)  # fmt: skip
def test_components_are_as_they_should_be(components: str) -> None:
    assert not accepted(by_hand(PLAIN, components, parameters()))


@pytest.mark.parametrize(
    "changed",
    [
        {"alg": '"hmac-sha512"'}, {"alg": '""'}, {"alg": '"none"'}, {"alg": '"HMAC-SHA256"'}, {"alg": "1"},
        {"tag": '"danlu-v2"'}, {"tag": None}, {"tag": '""'}, {"nonce": None}, {"nonce": '""'}, {"nonce": '"short"'},
        {"nonce": f'"{"a" * 65}"'}, {"nonce": f'"{"a" * 30} "'}, {"nonce": "1" * 12}, {"keyid": None}, {"keyid": '""'},
        {"keyid": '"another"'}, {"keyid": "123"}, {"created": None}, {"expires": None}, {"created": f'"{NOW_S}"'},
        {"expires": f'"{NOW_S + 1}"'}, {"expires": str(NOW_S + EXPIRES_S + 1)}, {"expires": str(NOW_S - 1)},
        {"created": "-1"}, {"created": f"{NOW_S}.5"}, {"created": "1" * 13}, {"created": "?1"}, {"expires": "0"},
        {"other": "1"}, {"other": '"x"'}, {"KEYID": f'"{KEY}"'}, {"keyid ": f'"{KEY}"'}, {"keyid": f"'{KEY}'"},
        {"keyid": '"a\\"b"'}, {"keyid": f":{KEY}:"},
    ],
)  # fmt: skip
def test_parameters_are_as_they_should_be(changed: dict[str, str | None]) -> None:
    assert not accepted(by_hand(PLAIN, COMPONENTS, parameters(**changed)))


@pytest.mark.parametrize("name", ["created", "expires", "keyid", "alg", "nonce", "tag"])
@pytest.mark.parametrize("value", ["1800000000", '"danlu-v1"'])
def test_a_parameter_is_there_once(name: str, value: str) -> None:
    assert not accepted(by_hand(PLAIN, COMPONENTS, parameters() + f";{name}={value}"))
    assert not accepted(by_hand(PLAIN, COMPONENTS, f";{name}={value}" + parameters()))


def test_the_algorithm_need_not_be_said_and_order_is_the_signers() -> None:
    assert accepted(by_hand(PLAIN, COMPONENTS, parameters(alg=None)))
    assert accepted(by_hand(PLAIN, " ".join(reversed(COMPONENTS.split(" "))), parameters(), label="mine"))
    assert accepted(by_hand(PLAIN, COMPONENTS + ' "accept"', parameters()))


def test_there_is_one_signature_and_it_is_the_inputs() -> None:
    message = by_hand(PLAIN, COMPONENTS, parameters())
    found = dict(message.headers)
    two = by_hand(PLAIN, COMPONENTS, parameters(), label="other")

    def having(**headers: str | None) -> Message:
        left = [(k, v) for k, v in message.headers if k not in ("signature", "signature-input")]
        given = {"signature-input": found["signature-input"], "signature": found["signature"],
                 **{k.replace("_", "-"): v for k, v in headers.items()}}  # fmt: skip
        return replace(message, headers=(*left, *((k, v) for k, v in given.items() if v is not None)))

    assert accepted(having())
    assert not accepted(having(signature=None))
    assert not accepted(having(signature_input=None))
    assert not accepted(having(signature=dict(two.headers)["signature"]))
    for name in ("signature", "signature-input"):
        both = found[name] + ", " + dict(two.headers)[name]
        assert not accepted(having(**{name: both}))
        assert not accepted(with_headers(message, (name, found[name])))
        assert not accepted(with_headers(message, (name, dict(two.headers)[name])))
    assert not accepted(replace(two, headers=(*message.headers, *two.headers[-2:])))
    assert not accepted(having(signature=found["signature"].replace(":", "")))
    assert not accepted(having(signature=found["signature"][:-1] + ";x=1:"))


def test_what_must_not_be_done_twice_needs_a_nonce_and_a_digest() -> None:
    bare = replace(PLAIN, headers=())
    assert not accepted(signed(bare))
    assert not accepted(signed(PLAIN, nonce=""))
    assert not accepted(signed(replace(bare, method="GET")), once=True)  # a web socket
    assert accepted(signed(replace(bare, method="GET"), nonce=""), once=False)


@pytest.mark.parametrize(
    "digest",
    [
        "", "sha-256=::", "sha-256=:AAAA:", "sha-512=:" + "A" * 86 + "==:", "md5=:AAAAAAAAAAAAAAAAAAAAAA==:",
        content_digest(BODY).replace("sha-256", "SHA-256"), content_digest(BODY) + ", " + content_digest(b""),
        content_digest(BODY)[:-2] + ":", content_digest(BODY) + ";q=1", content_digest(BODY).replace(":", '"'),
    ],
)  # fmt: skip
def test_a_digest_is_by_sha256_alone(digest: str) -> None:
    others = tuple(header for header in PLAIN.headers if header[0] != "content-digest")
    assert not accepted(signed(replace(PLAIN, headers=(*others, ("content-digest", digest)))))


@pytest.mark.parametrize(
    ("off_s", "good"), [(0, True), (SKEW_S - 1, True), (SKEW_S, True), (SKEW_S + 1, False), (10**6, False)]
)
def test_clocks_may_differ_by_as_much(off_s: int, good: bool) -> None:
    found = claim(signed(), once=True)
    assert found.current(found.created_s - off_s) is good
    assert found.current(found.expires_s + off_s) is good


@given(st.integers(0, 10**11), st.integers(0, EXPIRES_S), st.integers(-2000, 2000))
def test_a_nonce_is_remembered_for_as_long_as_it_could_be_used(created_s: int, life_s: int, off_s: int) -> None:
    found = Claim(KEY, created_s, created_s + life_s, NONCE, b"", b"", None)
    now_s = created_s + off_s
    assert not (found.current(now_s) and now_s >= found.forgotten_at_s)


@pytest.mark.parametrize("unusual", ["é", "日本", "a\nb", "a\0b"])
def test_what_cannot_be_in_a_header_is_not_signed_for_it(unusual: str) -> None:
    """The base's lines stay one for each component: nobody can write two with one value."""
    message = with_headers(PLAIN, ("danlu-x", unusual))
    try:
        made = signed(message)
    except (BadSignature, UnicodeEncodeError):
        return
    other = replace(made, headers=tuple((k, "a" if k == "danlu-x" else v) for k, v in made.headers))
    assert not accepted(other)


def test_the_vector_of_the_standard() -> None:
    """RFC 9421, appendix B.2.5."""
    message = Message(
        "POST", "example.com", "/foo", "param=Value&Pet=dog",
        (("date", "Tue, 20 Apr 2021 02:07:55 GMT"), ("content-type", "application/json")),
    )  # fmt: skip
    secret = base64.b64decode(
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    )
    given = '("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"'
    text = base_of(message, ("date", "@authority", "content-type"), given)
    assert text.decode() == (
        '"date": Tue, 20 Apr 2021 02:07:55 GMT\n"@authority": example.com\n"content-type": application/json\n'
        f'"@signature-params": {given}'
    )
    mac = base64.b64encode(hmac.digest(secret, text, "sha256")).decode()
    assert mac == "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


PATHS = st.text(st.sampled_from("abc/-._~%41!$&'()*+,;=:@"), max_size=20).filter(lambda path: "%" not in path)


@given(st.sampled_from(["GET", "PUT", "POST", "DELETE"]), PATHS, st.text(st.sampled_from("ab=&+-._~/?"), max_size=20),
       st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20))  # fmt: skip
def test_another_implementation_computes_the_same(method: str, path: str, query: str, value: str) -> None:
    message = Message(
        method, "danlu.example:7070", "/" + path, query,
        (("content-type", "application/json"), ("danlu-x", value), ("content-digest", content_digest(BODY))),
    )  # fmt: skip
    made = sign(message, KEY, SECRET, created_s=NOW_S, nonce=NONCE)
    target = f"/{path}" + (f"?{query}" if query else "")
    theirs = SimpleNamespace(
        method=method, url=f"http://danlu.example:7070{target}", headers={**dict(message.headers), **made}
    )
    verifier = HTTPMessageVerifier(
        signature_algorithm=algorithms.HMAC_SHA256,
        key_resolver=MappingKeyResolver(public_keys={KEY: SECRET}, private_keys={}),
    )
    base, _, _ = verifier._build_signature_base(
        theirs,
        covered_component_ids=_items(made["Signature-Input"]),
        signature_params=_parameters(made["Signature-Input"]),
    )
    assert base.encode() == claim(signed(message), once=True).base


def _input(text: str):  # type: ignore[no-untyped-def]
    return HTTPMessageVerifier._parse_signature_dictionary(text)["danlu"]


def _items(text: str):  # type: ignore[no-untyped-def]
    return list(_input(text))


def _parameters(text: str):  # type: ignore[no-untyped-def]
    return dict(_input(text).params)
