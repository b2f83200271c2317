"""Hostile bytes, with the hit path and without: every answer is the same, byte for byte.

``HOSTILE_SECONDS`` and ``HOSTILE_SEED`` look for longer, and elsewhere. A finding names its stream: the same seed and
number make the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.server.test_hit_path import answer_to, answered_below, forms, heat, message, target
from tests.support.client import Address, Connection
from tests.support.process import PATIENCE
from tests.support.server import running_server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("HOSTILE_SECONDS", "5"))
SEED = os.environ.get("HOSTILE_SEED", "0")
AT_ONCE = 48
PACES = (0.0, 0.05, 0.2)
"""Seconds between pieces when a stream is sent again. A difference that is gone then was one of time: who asked first,
or whether a body had arrived when its answer was given."""

VOLATILE = [
    (re.compile(rb"(?m)^date: .*?\r\n"), b""),
    (re.compile(rb"(?m)^server-timing: .*?\r\n"), b""),
    (re.compile(rb"(?m)^age: \d+\r\n"), b"age: *\r\n"),
    (re.compile(rb"(?m)^x-request-id: [0-9a-f]{32}\r\n"), b"x-request-id: *\r\n"),
    (re.compile(rb"(?m)^(cache-status: predict; fwd=[a-z-]+); (stored|collapsed)"), rb"\1; *"),  # who asked first
    (re.compile(rb"\b(ttl|max-age)=\d+"), rb"\1=*"),
    (re.compile(rb'(?m)^etag: W/"[^"]+"'), rb"etag: *"),  # each service has a generation of its own
]

HOT = [target(round(4 + i / 4, 2), **more).encode() for i in range(4) for more in ({}, {"top_k": 1})]
FORMS = [*([form] for form in forms(5.1)), *([("GET", hot.decode(), {}, b"")] for hot in HOT)]
"""Each with its share of the traffic: every form of one question, and a few questions by GET."""
JSON = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}'
METHODS = [b"HEAD", b"POST", b"QUERY", b"OPTIONS", b"PUT", b"CONNECT", b"BREW", b"get", b"G", b"PRI", b"DELETE", b""]
TARGETS = [
    *(
        b"/",
        b"*",
        b"/livez",
        b"/models%2Firis",
        b"/v2",
        b"/predict",
        b"/predict#a",
        b"/predict?",
        b"//predict",
        b"/\x80",
    ),
    *(b"http://test" + HOT[0], b"http://a b" + HOT[0], b"https:" + HOT[0], b"/predict?" + b"x" * 5000),
    *(HOT[0] + end for end in (b"#", b"&", b"%", b"%00", b"&top_k=%31", b"\t", b"?", b"&x=\xff", b" ", b"&model=iris")),
]
VERSIONS = [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b"", b"HTTP/1.11", b"X"]
HOSTS = [
    b"a b",
    b"@",
    b"[::1",
    b"[::1]:80",
    b"\x80",
    b"",
    b"a,b",
    b"a:x",
    b"test\r\nHost: test",
    b"%zz",
    b"\x00",
    b"a\tb",
]
FIELDS = [
    *(
        b"Cache-Control: " + value
        for value in (b"no-cache", b"no-store", b"max-age=0", b"max-age=9", b"NO-CACHE,x", b"=")
    ),
    *(b"Connection: " + value for value in (b"close", b"keep-alive", b"Keep-Alive", b"upgrade", b"close, x", b"TE")),
    *(b"Content-Length: " + value for value in (b"0", b"75", b"-1", b"+1", b"0x1", b"99999999999999999999", b"")),
    *(
        b"Transfer-Encoding: " + value
        for value in (b"chunked", b"gzip, chunked", b"gzip", b"chunked, chunked", b"", b"x")
    ),
    *(b"Content-Type: " + value for value in (b"application/json", b"text/plain", b"image/png")),
    *(b"Expect: 100-continue", b"Expect: x", b"Upgrade: h2c", b"Upgrade: websocket", b"Traceparent: 00-0-0-00"),
    *(b"If-None-Match: *", b'If-None-Match: W/"x"', b"If-Match: *", b"Authorization: x", b"Accept-Encoding: gzip"),
    *(b"X-Request-ID: abc", b"X-Request-ID: a b", b"X-Request-ID:\tabc\t ", b"x-request-id: a\r\nX-Request-Id: b"),
    *(
        b"X: " + b"y" * 5000,
        b"X : y",
        b" X: y",
        b"X: y\r\n z",
        b"X: a\rb",
        b"X: a\nb",
        b"X\x00: y",
        b": y",
        b"X",
        b"\x80: y",
    ),
    *(b"HOST: test", b"Range: bytes=0-1", b"Content-Encoding: gzip", b"TE: trailers", b"Trailer: Host"),
]
BODIES = [
    JSON,
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON),
    b"0\r\n\r\n",
    b"0\r\nHost: x\r\n\r\n",
    b"zz\r\n",
    b"\r\n",
    b"\x00" * 99,
]


def request(chance: Random) -> bytes:
    """Mostly a hit, and seldom more than a few things wrong with it."""
    usual, asked, given, body = chance.choice(chance.choice(FORMS))
    body = body.replace(b"ID", chance.choice([b"ID", b"ab", b"\\n", b'x"', b"\xff\xff"]))
    fields = [b"%b: %b" % (name.encode(), str(value).encode()) for name, value in given.items()]
    if chance.random() < 0.4:
        return message(usual, asked, given, body)

    def rarely(odd: list[bytes], usual: bytes, share: float = 0.2) -> bytes:
        return chance.choice(odd) if chance.random() < share else usual

    method, version = rarely(METHODS, usual.encode()), rarely(VERSIONS, b"HTTP/1.1", 0.1)
    fields += [b"Host: " + rarely(HOSTS, b"test"), *chance.sample(FIELDS, chance.choice([0, 0, 1, 1, 2, 3]))]
    if body and chance.random() < 0.9:
        fields += [b"Content-Length: %d" % len(body)]
    chance.shuffle(fields)
    line = rarely([b"  ", b"\t", b""], b" ", 0.05).join([method, rarely(TARGETS, asked.encode(), 0.3), version])
    end = rarely([b"\n", b"\r", b"\r\r\n"], b"\r\n", 0.03)
    return end.join([line, *fields, b"", b""]) + (body or rarely(BODIES, b"", 0.15))


def mutated(data: bytes, chance: Random) -> bytes:
    raw = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        at = chance.randrange(len(raw) + 1)
        part = bytes(raw[at : at + chance.choice([1, 1, 4, 60])])
        how = chance.randrange(5)
        if how == 0 and part:
            raw[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            del raw[at : at + len(part)]
        elif how == 2:
            raw[at:at] = chance.choice([b"\r\n", b"\r", b"\n", b" ", b"\x00", b"\xff", b":", b"%", b"#", b"\r\n\r\n"])
        elif how == 3:
            raw[at:at] = part
        else:
            to = chance.randrange(len(raw) + 1)
            raw[to:to] = part
    return bytes(raw)


def stream(number: int) -> list[tuple[bytes, float]]:
    """What one client sends: each piece, and how long it then waits for the beginning of an answer, in seconds."""
    chance = Random(f"{SEED}/{number}")
    requests = [request(chance) for _ in range(chance.choice([1, 2, 3, 5, 9]))]
    if chance.random() < 0.5:
        requests[-1] = mutated(requests[-1], chance)
    if chance.random() < 0.6:
        requests.append(b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    if chance.random() < 0.5:  # one read each, as most clients do
        return [(request, chance.choice([0.0, 0.1, 0.1])) for request in requests]
    whole = b"".join(requests)
    if chance.random() < 0.3:
        whole = mutated(whole, chance)
    cuts = [0, *sorted(chance.randrange(len(whole) + 1) for _ in range(chance.randrange(5))), len(whole)]
    return [(whole[a:b], chance.choice([0.0, 0.002])) for a, b in pairwise(cuts)]


@dataclass
class Client(asyncio.Protocol):
    """Sends a stream and keeps all that comes."""

    received: bytes = b""

    def __post_init__(self) -> None:
        self.arrived, self.closed = asyncio.Event(), asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrived.set()
        self.closed.set()


async def answers(address: Address, pieces: list[tuple[bytes, float]], pace: float) -> bytes:
    """All that the service says until it closes the connection, without what may differ."""
    transport, client = await asyncio.get_running_loop().create_connection(Client, *address)
    for piece, patience in pieces:
        client.arrived.clear()
        transport.write(piece)
        if client.closed.is_set():
            break
        if patience:
            with suppress(TimeoutError):
                await asyncio.wait_for(client.arrived.wait(), patience)
        await asyncio.sleep(pace)
    await asyncio.wait_for(client.closed.wait(), PATIENCE)
    transport.close()
    said = client.received
    for pattern, plain in VOLATILE:
        said = pattern.sub(plain, said)
    return said


async def differs(
    addresses: list[Address], pieces: list[tuple[bytes, float]], pace: float = 0.0
) -> tuple[bytes, bytes] | None:
    below, ordinary = await asyncio.gather(*(answers(address, pieces, pace) for address in addresses))
    assert b"HTTP/1.1 500 " not in below + ordinary, (pieces, below, ordinary)
    return None if below == ordinary else (below, ordinary)


async def explore(addresses: list[Address], go_on: Callable[[], bool]) -> tuple[int, int]:
    """How many streams were sent, and how many were answered differently once and never again."""
    sent, suspects = 0, []

    async def one_after_the_other() -> None:
        nonlocal sent
        while go_on():
            number, sent = sent, sent + 1
            if found := await differs(addresses, stream(number)):
                suspects.append(number)
                print(number, stream(number), *found, sep="\n   ")  # shown when the test fails, or with -s

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    unconfirmed = list(suspects)

    async def confirm() -> None:
        while unconfirmed:
            number = unconfirmed.pop()
            for pace in PACES:
                if (found := await differs(addresses, stream(number), pace)) is None:
                    break
            else:
                raise AssertionError(f"seed {SEED}, stream {number}: {stream(number)}\n{found}")

    await asyncio.gather(*(confirm() for _ in range(AT_ONCE // 4)))
    return sent, len(suspects)


async def test_hostile_bytes_are_answered_the_same_below_and_above(iris_models: Path, tmp_path: Path) -> None:
    timeouts = dict.fromkeys(("header_timeout_seconds", "body_timeout_seconds", "keep_alive_seconds"), 1)
    given = {"models_dir": iris_models, "ttl_seconds": 4_000_000, **timeouts}
    with (
        running_server(tmp_path / "on", **given) as on,
        running_server(tmp_path / "off", hit_path="no", **given) as off,
    ):
        for server in (on, off):
            async with await Connection.open(server.address) as connection:
                for hot in HOT:
                    await heat(connection, hot.decode())
                for form in forms(5.1):
                    for _ in range(3):
                        await answer_to(connection, message(*form))
        end = time.monotonic() + SECONDS
        sent, once = await explore([on.address, off.address], lambda: time.monotonic() < end)
        below = sum(answered_below(on, route) for route in ("/predict", "/v2/models/{name}/infer"))
        total = [server.metric("predict_requests_total") for server in (on, off)]
        print(f"seed {SEED}: {sent} streams, {total} requests counted, {below} below, {once} differed once")
        assert below > sent / 4
