"""The hit path: what it answers, the ordinary path would have answered, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
import re
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.app import create_app
from service.config import Settings, load_settings
from service.runtime import Bodies
from service.server.connection import protocol_class
from service.server.hit_table import HitTable
from service.server.request_key import SMALL_BODY_BYTES, START_BYTES, KnownBody, Upload, request_key
from service.server.worker import Lifespan
from tests.support.client import Address, Connection, caught_up, fetch
from tests.support.process import PATIENCE, SLACK, resident_bytes
from tests.support.server import Server, running_server
from tests.support.untrained import write_both

pytestmark = pytest.mark.anyio

ORDINARY = {"traceparent": "00-0-0-00"}
"""A header that sends a request along the ordinary path and changes nothing in its answer."""


def target(x: float = 5.1, **more: object) -> str:
    flower = {"sepal_length": x, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2, **more}
    return "/predict?" + urlencode(flower)


@pytest.fixture(scope="module")
def server(iris_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("hits"), models_dir=iris_models) as server:
        yield server


Form = tuple[str, str, dict[str, object], bytes]
"""Method, target, header fields and body of a request."""


def forms(x: float, tag: str | None = None, identifier: str = "ID") -> list[Form]:
    """Every form of one question. ``tag``: what the client has. ``identifier``: in the body."""
    row = {"sepal_length": x, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
    body, infer = json.dumps(row).encode(), "/v2/models/iris/infer"
    as_json: dict[str, object] = {"Content-Type": "application/json"}
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP64"}
    in_json = json.dumps({"inputs": [tensor | {"data": list(row.values())}]}).encode()
    binary = {"inputs": [tensor | {"parameters": {"binary_data_size": 32}}]}
    wanted = {"parameters": {"binary_data_output": True}}
    heads = [json.dumps({"id": identifier, **binary, **wanted}).encode(), json.dumps(binary).encode()]
    named = in_json.replace(b"{", b'{"id": %b, ' % json.dumps(identifier).encode(), 1)
    packed = struct.pack("<4d", *row.values())
    return [
        ("GET", target(x), {}, b""),
        ("HEAD", target(x), {}, b""),
        *([("GET", target(x), {"If-None-Match": tag}, b"")] if tag else []),
        *((method, "/predict?top_k=2", as_json, body) for method in ("POST", "QUERY")),
        ("POST", "/models/iris/predict", as_json | {"Accept-Encoding": "gzip"}, body),
        ("POST", infer, {}, in_json),
        ("POST", infer, as_json, named),
        ("POST", infer, {"Accept-Encoding": "gzip"}, named),
        *(("POST", infer, {"Inference-Header-Content-Length": len(head)}, head + packed) for head in heads),
        ("POST", infer, {"Content-Encoding": "gzip"}, gzip.compress(in_json, mtime=0)),
        *(("POST", asked, as_json, large(named)) for asked, named in (("/predict", body), (infer, named))),
    ]


def large(body: bytes) -> bytes:
    """The same JSON in so many bytes that its hash stands for it."""
    return body + b" " * SMALL_BODY_BYTES


def message(method: str, target: str, headers: Mapping[str, object], body: bytes = b"") -> bytes:
    """A whole request."""
    fields = {"Host": "test", **headers, **({"Content-Length": len(body)} if body else {})}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


async def answer_to(connection: Connection, *pieces: bytes) -> bytes:
    """The whole answer to a request that is sent in pieces, each of which is a read of its own."""
    for piece in pieces[:-1]:
        connection.writer.write(piece)
        await caught_up(connection.writer.get_extra_info("peername"))
    connection.writer.write(pieces[-1])
    head = await connection.reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    has_body = length is not None and not pieces[0].startswith(b"HEAD ")
    return head + (await connection.reader.readexactly(int(length[1])) if length and has_body else b"")


def answered_below(server: Server, route: str = "/predict") -> int:
    """How many predictions the hit path has answered: all but those whose latency was measured."""
    while True:  # an answer is sent before it is counted, and counted in two steps
        counts = [
            server.metric("predict_requests_total", route=route)
            - server.metric("predict_request_seconds_count", route=route)
            for _ in range(2)
        ]
        if counts[0] == counts[1]:
            return int(counts[0])


async def raw(connection: Connection, target: str, headers: Mapping[str, str] | None = None) -> bytes:
    """One whole answer, as it came."""
    return await answer_to(connection, message("GET", target, headers or {}))


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[Address, ServerState, HitTable]]:
    """The service in this process, where its hit table can be seen."""
    config = Config(create_app(settings), http=protocol_class(settings), interface="asgi3", ws="none", log_config=None)
    config.load()
    lifespan, state = Lifespan(config.loaded_app), ServerState()
    await lifespan.startup()

    def connect() -> asyncio.Protocol:
        return protocol_class(settings)(config=config, server_state=state, app_state=lifespan.state)

    async with await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0) as accepting:
        yield accepting.sockets[0].getsockname(), state, lifespan.state["hits"]
    await lifespan.shutdown()


def shape(answer: bytes) -> tuple[list[bytes], bytes]:
    """The names of its header fields, and its body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return [line.partition(b":")[0] for line in head.split(b"\r\n")], body


async def heat(connection: Connection, target: str) -> None:
    for _ in range(3):
        await connection.get(target)


async def test_a_plain_hit_is_answered_below_and_counted_exactly(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        before, requests = answered_below(server), server.metric("predict_requests_total", route="/predict")
        for _ in range(100):
            assert (await connection.get(target())).cache == {
                "hit": True,
                "ttl": pytest.approx(210, abs=90),
                "detail": "L1",
            }
    assert answered_below(server) - before == 100
    assert server.metric("predict_requests_total", route="/predict") - requests == 100
    assert server.metric("predict_cache_results_total", model="iris", result="l1") >= 100


async def test_once_a_connection_has_had_a_hit_the_next_is_answered_before_any_parsing(iris_models: Path) -> None:
    settings = load_settings({"PREDICT_MODELS_DIR": str(iris_models), "PREDICT_AUDIT_SHARE": "0"})
    async with serving(settings) as (address, state, hits), await Connection.open(address) as client:
        await heat(client, target())
        by_target = await raw(client, target())
        for _ in range(2):  # the second time another spelling is known, too
            await raw(client, target(), {"User-Agent": "another"})
        [connection] = state.connections
        connection.parser = None  # type: ignore[union-attr,assignment]
        by_head = [await raw(client, target(), more) for more in ({}, {"User-Agent": "another"}, {})]
        hits.flush()
        assert state.total_requests == 9
        assert [shape(answer) for answer in by_head] == 3 * [shape(by_target)]


async def test_a_connection_that_asks_again_has_no_hit_that_was_purged(iris_models: Path) -> None:
    token = "secret" * 4
    settings = {"MODELS_DIR": str(iris_models), "AUDIT_SHARE": "0", "ADMIN_TOKEN": token}
    loaded = load_settings({f"PREDICT_{name}": value for name, value in settings.items()})
    async with (
        serving(loaded) as (address, _, _),
        await Connection.open(address) as client,
        await Connection.open(address) as other,
    ):
        await heat(client, target())
        assert b"detail=L1" in await raw(client, target())
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        assert (await other.request("POST", "/admin/purge", headers, b'{"model": "iris"}')).status == 200
        assert b"; hit" not in await raw(client, target())


async def test_no_other_protocol_is_given_a_hit(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        connection.writer.write(f"GET {target()} RTSP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await connection.read()).status == 400


async def test_both_paths_answer_with_the_same_bytes(server: Server) -> None:
    """Whatever the form, whatever its id, and in however many reads it arrives."""
    chance = random.Random(0)
    routes = ("/predict", "/models/{name}/predict", "/v2/models/{name}/infer")
    below = {route: answered_below(server, route) for route in routes}
    async with await Connection.open(server.address) as connection:
        for _ in range(15):
            x = round(chance.uniform(4, 8), 1)
            await heat(connection, target(x))
            tag = (await connection.get(target(x))).headers["etag"]
            identifier = chance.choice(["ID", "ab", "an id", "é", ""])
            for warm, (method, asked, headers, body) in zip(forms(x, tag), forms(x, tag, identifier), strict=True):
                for _ in range(3):
                    await answer_to(connection, message(*warm))
                given = chance.choice(["abc-1", "x" * 64, "not valid!", ""])
                also = {"X-Request-ID": given} if chance.random() < 0.3 else {}
                # Plain ones around it: a second may pass between any two, for Age, ttl and Date at different moments.
                three = []
                for more in ({}, ORDINARY, {}):
                    whole = message(method, asked, headers | also | more, body)
                    cut = chance.randrange(1, len(whole)) if chance.random() < 0.1 else len(whole) - len(body)
                    pieces = [whole] if chance.random() < 0.8 else [whole[:cut], whole[cut:]]
                    three.append(await answer_to(connection, *filter(None, pieces)))
                for before, ordinary, after in zip(*(answer.split(b"\r\n") for answer in three), strict=True):
                    assert ordinary in (before, after)
    found = {route: answered_below(server, route) - below[route] for route in routes}
    assert found["/predict"] >= 200, found
    assert found["/models/{name}/predict"] >= 20, found
    assert found["/v2/models/{name}/infer"] >= 100, found


@pytest.mark.parametrize("form", [3, -2], ids=["small", "hashed"])
async def test_what_a_post_is_answered_below_is_counted_exactly(server: Server, form: int) -> None:
    hit = message(*forms(5.2)[form])
    async with await Connection.open(server.address) as connection:
        for _ in range(3):
            await answer_to(connection, hit)
        names = ("predict_requests_total", "predict_cache_results_total", "predict_request_body_bytes_total")
        before = [server.metric(name) for name in names]
        for _ in range(100):
            assert b"HTTP/1.1 200 OK" in await answer_to(connection, hit)
        counted = [server.metric(name) - old for name, old in zip(names, before, strict=True)]
    assert counted[1:] == [100, 100 * len(hit.partition(b"\r\n\r\n")[2])]


async def test_a_flood_of_bodies_does_not_grow_the_table(iris_models: Path) -> None:
    """It holds so many bytes, bodies included, and nothing for a body that was asked once."""
    settings = load_settings({"PREDICT_MODELS_DIR": str(iris_models), "PREDICT_L1_MAX_BYTES": str(2**20)})
    async with serving(settings) as (address, _, hits), await Connection.open(address) as client:
        for count in range(1200):
            method, asked, headers, body = forms(5.1)[3]
            bytes_more = b" " * (SMALL_BODY_BYTES if count % 5 == 0 else 0)  # a hash stands for such a body
            for _ in range(1 + count % 3):
                await answer_to(client, message(method, asked, headers, b" " * count + body + bytes_more))
            assert hits.bytes_used <= 2**18
            contents = [known.content for known in hits.known.values()]
            assert sum(map(len, (*hits.by_key, *hits.by_spelling, *contents))) <= hits.bytes_used
            assert hits.awaited.total() == len(hits.by_key)
        hits.clear()
        assert (hits.bytes_used, hits.awaited.total(), len(hits.by_spelling), len(hits.known)) == (0, 0, 0, 0)


async def test_a_body_that_never_comes_is_waited_for_as_long_as_any(iris_models: Path, tmp_path: Path) -> None:
    """Though its head is one of a hit's, so the application has not been asked yet."""
    with running_server(tmp_path, models_dir=iris_models, body_timeout_seconds=1) as server:
        for form in (3, -2):
            hit = message(*forms(5.1)[form])
            async with await Connection.open(server.address) as connection:
                for _ in range(3):
                    await answer_to(connection, hit)
                connection.writer.write(hit[:-1])
                assert (await connection.read()).status == 408
                assert await connection.is_closed(within=PATIENCE)


async def test_a_large_body_is_found_by_its_hash_and_takes_room_until_then(iris_models: Path) -> None:
    """Only the body itself is found, whatever stands where the hash does. Without room it is refused as any body is."""
    settings = load_settings({"PREDICT_MODELS_DIR": str(iris_models), "PREDICT_AUDIT_SHARE": "0"})
    method, asked, headers, body = forms(5.1)[-2]
    whole = message(method, asked, headers, body)
    async with serving(settings) as (address, state, hits), await Connection.open(address) as client:
        for _ in range(3):
            await answer_to(client, whole)
        [key] = hits.by_key
        assert len(key) < 200
        [connection] = state.connections
        connection.app = None  # type: ignore[union-attr,assignment]
        assert b"detail=L1" in await answer_to(client, *(whole[at : at + 5000] for at in range(0, len(whole), 5000)))
        connection.app = connection.config.loaded_app  # type: ignore[union-attr]
        assert hits.bodies.held == 0
        for other in (hashlib.sha256(body).digest(), body[:-1] + b"]"):
            assert b" 400 " in await answer_to(client, message(method, asked, headers, other))
        assert b"fwd=uri-miss" in await answer_to(client, message(method, asked, headers, body.replace(b"5.1", b"5.9")))
        hits.bodies.take(settings.max_bodies_bytes)
        refused = await answer_to(client, whole)
        assert b" 503 " in refused
        assert b"retry-after: " in refused


async def test_an_image_that_is_hashed_while_it_arrives_is_the_same_question(iris_models: Path, tmp_path: Path) -> None:
    """Whether its answer is known to the hit path, to a cache or to nobody, in whatever coding it comes."""
    settings = load_settings({"PREDICT_MODELS_DIR": str(write_both(iris_models, tmp_path)), "PREDICT_AUDIT_SHARE": "0"})
    chance = random.Random(0)

    def picture() -> bytes:
        file = io.BytesIO()
        Image.frombytes("RGB", (96, 96), chance.randbytes(96 * 96 * 3)).save(file, "PNG")
        return file.getvalue()

    async with serving(settings) as (address, _, _), await Connection.open(address) as client:
        first = picture()
        others = [picture(), picture(), first + b"more"]
        for coding in ({}, {"Content-Encoding": "gzip"}):
            headers = {"Content-Type": "image/png", **coding}
            for file in (first, first, first, *others, first, *others):
                body = gzip.compress(file) if coding else file
                answer = await answer_to(client, message("POST", "/predict?model=digits", headers, body))
                assert b"?sha256=" + hashlib.sha256(file).hexdigest().encode() in answer
                assert (await client.get(f"/predict?model=digits&sha256={hashlib.sha256(file).hexdigest()}")).hit


def test_a_body_that_begins_as_a_known_one_keeps_its_own_bytes_and_hash() -> None:
    """Wherever it ends or differs, and in whatever pieces it comes. An equal one is not hashed again."""
    chance, bodies = random.Random(0), Bodies(2**20)
    file = chance.randbytes(20_000)
    known = {file[:START_BYTES]: KnownBody(file, b"as it was made")}
    head = request_key(b"POST", b"/", [(b"content-length", b"20000")]) or b""
    for _ in range(300):
        place = chance.randrange(len(file))
        changed = file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :]
        for body in (file, file[: place + 1], file + file[:place], changed):
            upload = Upload(head, bodies, known)
            cuts = [0, *sorted(chance.choices(range(len(body)), k=chance.randrange(4))), len(body)]
            assert all(upload.add(body[start:end]) for start, end in pairwise(cuts))
            starts_alike = next(filter(None, cuts)) >= START_BYTES
            expected = b"as it was made" if body is file and starts_alike else hashlib.sha256(body).digest()
            assert (upload.digest, bodies.held) == (expected, len(body))
            assert (b"".join(upload.release()), bodies.held) == (body, 0)


async def test_a_body_with_zeros_for_an_id_is_no_hit(iris_models: Path) -> None:
    """Ids are zeros in keys. Such a body is no JSON, and must not get the id of somebody else's answer."""
    settings = load_settings({"PREDICT_MODELS_DIR": str(iris_models)})
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": [5.1, 3.5, 1.4, 0.2]}
    body = json.dumps({"id": "abc", "inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/json"}
    async with serving(settings) as (address, _, hits), await Connection.open(address) as client:
        whole = message("POST", "/v2/models/iris/infer", headers, body)
        for _ in range(3):
            assert b'"id":"abc"' in await answer_to(client, whole)
        assert any(b"\0\0\0" in key for key in hits.by_key)
        assert b" 400 " in await answer_to(client, whole.replace(b"abc", bytes(3)))


async def test_a_client_that_leaves_amid_its_large_body_takes_its_room_along(iris_models: Path) -> None:
    settings = load_settings({"PREDICT_MODELS_DIR": str(iris_models)})
    whole = message(*forms(5.1)[-2])
    async with serving(settings) as (address, _, hits):
        async with await Connection.open(address) as client:
            for _ in range(3):
                await answer_to(client, whole)
            client.writer.write(whole[:-1])
            await caught_up(address)
            assert hits.bodies.held > SMALL_BODY_BYTES
        await caught_up(address)
        assert hits.bodies.held == 0


@pytest.mark.parametrize(
    "special",
    [
        {"Cache-Control": "no-cache"},
        {"Cache-Control": "max-age=0"},
        {"If-None-Match": "*"},
        {"If-Match": "*"},
        {"Authorization": "Bearer x"},
        {"Expect": "100-continue"},
        {"Upgrade": "websocket", "Connection": "upgrade"},
        {"Content-Length": "0"},
        {"Connection": "close"},
        ORDINARY,
    ],
    ids=lambda special: ",".join(special),
)
async def test_any_special_header_takes_the_ordinary_path(server: Server, special: dict[str, str]) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        below = answered_below(server)
        assert (await connection.get(target(), special)).status in (200, 304)
    assert answered_below(server) == below


async def test_an_answer_below_never_has_a_request_id(server: Server) -> None:
    """Whoever keeps it would give it to others."""
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        below = answered_below(server)
        answers = [await raw(connection, target(), {"X-Request-ID": f"id-{number}"}) for number in range(5)]
        assert not any(b"id-" in answer for answer in answers)
    assert answered_below(server) - below == 5


@pytest.mark.parametrize("host", [b"a b", b"@", b"[::1", b"\x80", b"test\r\nHost: test"])
async def test_a_host_that_is_none_is_refused_though_the_same_target_is_hot(server: Server, host: bytes) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        connection.writer.write(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target().encode(), host))
        assert (await connection.read()).status == 400


async def test_if_none_match_is_heard_though_the_same_target_is_hot(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        tag = (await connection.get(target())).headers["etag"]
        assert (await connection.get(target(), {"If-None-Match": tag})).status == 304


async def test_head_has_the_headers_of_get_and_no_body(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        head = await connection.request("HEAD", target())
        get = await connection.get(target())
        assert (head.body, head.headers["content-length"]) == (b"", str(len(get.body)))
        assert head.headers["etag"] == get.headers["etag"]


async def test_a_connection_is_closed_where_the_client_wants_it(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        connection.send("GET", target(), {"Connection": "close"})
        assert (await connection.read()).headers["connection"] == "close"
        assert await connection.is_closed(within=PATIENCE)


async def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        connection.writer.write(f"GET {target()} HTTP/1.0\r\n\r\n".encode())
        assert (await connection.read()).status == 200
        assert await connection.is_closed(within=PATIENCE)


async def test_pipelined_requests_hot_and_cold_are_answered_in_order(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        hot = [target(round(4 + i / 10, 1), top_k=1) for i in range(10)]
        for asked in hot:
            await heat(connection, asked)
        expected = {asked: (await connection.get(asked)).body for asked in hot}
        order = [asked for i, asked in enumerate(hot) for asked in (asked, target(9 + i / 100), "/livez", asked)]
        for asked in order:
            connection.send("GET", asked)
        for asked in order:
            answer = await connection.read()
            assert answer.status == 200
            if asked in expected:
                assert answer.body == expected[asked]
            assert ("predictions" in answer.json() or "prediction" in answer.json()) == (asked != "/livez")


async def test_a_request_that_arrives_in_pieces_is_answered_whole(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        whole = f"GET {target()} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        for cut in range(1, len(whole), 7):
            connection.writer.write(whole[:cut])
            await connection.writer.drain()
            # The server has read the piece once it has answered somebody who came after it.
            assert (await fetch(server.address, "/livez")).status == 200
            connection.writer.write(whole[cut:])
            assert (await connection.read()).hit


async def test_blanks_around_a_header_are_not_part_of_it(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        tag = (await connection.get(target())).headers["etag"]
        connection.send("GET", target(), {"If-None-Match": f"\t {tag} \t "})
        assert (await connection.read()).status == 304
        connection.send("GET", "/livez", {"X-Request-ID": "\t abc \t "})
        assert (await connection.read()).headers["x-request-id"] == "abc"


@pytest.mark.parametrize("behind", ["a piece of the head", "a body"])
async def test_what_only_looks_like_a_head_is_never_taken_for_one(server: Server, behind: str) -> None:
    question = target(6.9 if behind == "a body" else 6.8)
    line = b"GET %b HTTP/1.1\r\n" % question.encode()
    special = line + b"Host: a\r\nCache-Control: no-store\r\nX: "
    if behind == "a body":
        before = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        pieces = [before + b"Content-Length: %d\r\n\r\n" % len(special), special + line + b"Host: a\r\n\r\n"]
    else:
        special = line + b"\r\n"
        pieces = [line + b"Host: a\r\nX: ", special]
    async with await Connection.open(server.address) as connection, await Connection.open(server.address) as other:
        for _ in range(2):
            await connection.get(question, ORDINARY)
        for piece in pieces:
            connection.writer.write(piece)
            await caught_up(server.address)
        if behind == "a body":
            assert (await connection.read()).status == 400
        assert (await connection.read()).status == 200
        other.writer.write(pieces[1])
        assert (await other.read()).status != 200


async def test_age_rises_with_the_seconds_and_what_expired_is_computed_anew(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, ttl_seconds=4) as server:
        async with await Connection.open(server.address) as connection:
            born = time.monotonic()
            computed = await connection.get(target())
            born_by = time.monotonic()
            asked = time.monotonic()
            while (answer := await connection.get(target())).hit:
                assert int(asked - born_by) <= answer.age <= int(time.monotonic() - born)
                asked = time.monotonic()
                assert answer.age <= answer.max_age == computed.max_age
                assert answer.cache["ttl"] + answer.age in (answer.max_age, answer.max_age - 1, answer.max_age + 1)
            assert 3.5 <= time.monotonic() - born <= 4 * SLACK
            assert answered_below(server) > 20


async def test_a_client_that_does_not_read_is_not_written_to_without_end(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        expected = (await connection.get(target())).body
        [worker] = server.workers()
        before = resident_bytes(worker)
        request = f"GET {target()} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
        connection.reader._limit = 1  # type: ignore[attr-defined]  # the reading pauses at once
        count = 60_000
        connection.writer.write(request * count)
        # Whoever else asks is answered meanwhile.
        assert (await fetch(server.address, target())).hit
        assert resident_bytes(worker) - before < 32 * 2**20
        connection.reader._limit = 2**16  # type: ignore[attr-defined]
        for _ in range(count):
            assert (await connection.read()).body == expected


async def test_the_hit_path_can_be_switched_off(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, hit_path="false") as server:
        async with await Connection.open(server.address) as connection:
            await heat(connection, target())
            assert (await connection.get(target())).hit
            assert answered_below(server) == 0


async def test_while_draining_a_hit_says_close_too(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, drain_seconds=3) as server:
        async with await Connection.open(server.address) as connection:
            await heat(connection, target())
            server.process.terminate()
            while (await fetch(server.address, "/readyz")).status == 200:
                pass
            assert (await connection.get(target())).headers["connection"] == "close"
            assert await connection.is_closed(within=PATIENCE)


async def test_a_flood_of_spellings_does_not_grow_the_table(server: Server) -> None:
    async with await Connection.open(server.address) as connection:
        await heat(connection, target())
        for i in range(300):
            assert (await connection.get(target(), {"User-Agent": f"spelling-{i}"})).hit


async def test_a_head_after_hits_has_its_own_time(iris_models: Path, tmp_path: Path) -> None:
    """Not the rest of the idle connection's."""
    with running_server(tmp_path, models_dir=iris_models, keep_alive_seconds=6, header_timeout_seconds=4) as server:
        async with await Connection.open(server.address) as connection:
            await heat(connection, target())
        async with await Connection.open(server.address) as connection:
            below = answered_below(server)
            await connection.get(target())
            assert answered_below(server) == below + 1
            await asyncio.sleep(4)
            head = f"GET {target()} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            connection.writer.write(head[:30])
            await asyncio.sleep(2.5)
            connection.writer.write(head[30:])
            assert (await connection.reader.readline()) == b"HTTP/1.1 200 OK\r\n"


async def test_a_post_that_expired_is_computed_anew(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, ttl_seconds=2) as server:
        async with await Connection.open(server.address) as connection:
            for _ in range(4):
                assert b"cache-status: predict; " in await answer_to(connection, message(*forms(5.1)[3]))
            assert b"predict; hit" in await answer_to(connection, message(*forms(5.1)[3]))
            gone = time.monotonic() + 3
            while time.monotonic() < gone:
                answer = await answer_to(connection, message(*forms(5.1)[3]))
                if b"fwd=uri-miss" in answer:
                    break
                await asyncio.sleep(0.05)
            assert b"fwd=uri-miss" in answer
