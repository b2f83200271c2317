"""What the connection promises on its own, whatever the application does. Raw bytes in, raw bytes out."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.process.fixture import PLENTY, anyio_backend, assert_problem, exchange, open_fixture  # noqa: F401
from tests.support.process import becomes

pytestmark = pytest.mark.anyio

SHORT = {"header_timeout_seconds": 0.3, "body_timeout_seconds": 0.3}


# Refusals


async def test_a_broken_chunk_ends_its_request_with_400() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        head = b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        connection.writer.write(head)
        await becomes(lambda: fixture.paths == ["/count"])
        assert_problem(await exchange(connection, b"nonsense\r\n"), 400, "malformed-request")
        assert fixture.cancelled == ["/count"]


async def test_a_target_over_the_limit_is_414_even_when_it_never_ends() -> None:
    async with open_fixture(max_url_bytes=1000) as fixture:
        for ending in (b" HTTP/1.1\r\nHost: a\r\n\r\n", b""):
            async with await fixture.connect() as connection:
                assert_problem(await exchange(connection, b"GET /" + b"x" * 1000 + ending), 414, "uri-too-long")
        async with await fixture.connect() as connection:
            fits = await exchange(connection, b"GET /" + b"x" * 999 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert fits.status == 200


async def test_a_header_section_over_the_limit_is_431() -> None:
    async with open_fixture(max_header_bytes=1000) as fixture:
        many = b"".join(b"X-%d: y\r\n" % number for number in range(200))
        for fields in (many, b"X: " + b"y" * 1000 + b"\r\n"):
            async with await fixture.connect() as connection:
                response = await exchange(connection, b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
                assert_problem(response, 431, "headers-too-large")
        assert fixture.paths == []


async def test_a_header_that_never_ends_is_431_before_it_fills_the_memory() -> None:
    async with (
        open_fixture(max_header_bytes=1000, max_url_bytes=1000) as fixture,
        await fixture.connect() as connection,
    ):
        connection.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        reading = asyncio.create_task(connection.read())
        while not reading.done():
            connection.writer.write(b"y" * 500)
            await asyncio.sleep(0.002)
        assert_problem(await reading, 431, "headers-too-large")


async def test_an_error_under_v2_has_the_form_of_that_protocol() -> None:
    async with open_fixture(max_header_bytes=1000) as fixture, await fixture.connect() as connection:
        response = await exchange(connection, b"GET /v2/models HTTP/1.1\r\nX: " + b"y" * 1000 + b"\r\n\r\n")
        assert response.status == 431
        assert list(response.json()) == ["error"]
        assert response.headers["content-type"] == "application/json"


async def test_the_form_of_an_error_is_that_of_its_own_request_not_of_the_one_before() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        await exchange(connection, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert_problem(await exchange(connection, b"\x16\x03 / HTTP/1.1\r\n\r\n"), 400, "malformed-request")


async def test_an_application_that_raises_is_a_500_problem() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        response = await exchange(connection, b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.status == 500
        assert response.headers["cache-control"] == "no-store"
        assert response.json()["type"] == "internal-error"


# Deadlines


async def test_a_request_whose_head_does_not_arrive_in_time_is_408() -> None:
    async with open_fixture(**SHORT) as fixture:
        start = time.monotonic()
        async with await fixture.connect() as connection:
            assert_problem(await exchange(connection, b"GET / HTTP/1.1\r\nHost: a\r\n"), 408, "request-timeout")
            assert 0.25 < time.monotonic() - start < 5.0, "not after the 65 s of an idle connection"
            assert await connection.is_closed(PLENTY)


async def test_a_connection_that_says_nothing_is_closed_in_silence() -> None:
    async with open_fixture(**SHORT) as fixture, await fixture.connect() as connection:
        assert await asyncio.wait_for(connection.reader.read(), PLENTY) == b""


async def test_a_second_request_has_the_whole_time_for_its_head() -> None:
    async with (
        open_fixture(header_timeout_seconds=2.2, keep_alive_seconds=30) as fixture,
        await fixture.connect() as connection,
    ):
        await exchange(connection, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(1.4)
        connection.writer.write(b"GET /2 HTTP/1.1\r\n")
        await asyncio.sleep(1.0)
        assert (await exchange(connection, b"Host: a\r\n\r\n")).body == b"/2"


async def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    async with open_fixture(keep_alive_seconds=0.2) as fixture, await fixture.connect() as connection:
        await exchange(connection, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await connection.is_closed(PLENTY)


async def test_blank_lines_do_not_keep_a_connection_alive() -> None:
    async with open_fixture(**SHORT) as fixture, await fixture.connect() as connection:
        closed = asyncio.create_task(connection.is_closed(PLENTY))
        while not closed.done():
            connection.writer.write(b"\r\n")
            await asyncio.sleep(0.05)
        assert await closed


async def test_a_request_that_takes_long_to_answer_outlives_every_deadline() -> None:
    deadlines = dict.fromkeys(("header_timeout_seconds", "body_timeout_seconds", "keep_alive_seconds"), 1)
    async with open_fixture(**deadlines) as fixture, await fixture.connect() as connection:
        connection.writer.write(b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\n")
        await becomes(lambda: fixture.paths == ["/gate"])
        await asyncio.sleep(1.2)
        fixture.gate.set()
        assert (await connection.read()).status == 200


async def test_a_pause_in_a_body_is_408_and_cancels_the_request() -> None:
    async with open_fixture(body_timeout_seconds=0.3) as fixture, await fixture.connect() as connection:
        response = await exchange(connection, b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        assert_problem(response, 408, "request-timeout")
        assert fixture.cancelled == ["/count"]


async def test_a_body_that_dribbles_is_408_though_it_never_pauses() -> None:
    async with open_fixture(body_timeout_seconds=0.3) as fixture, await fixture.connect() as connection:
        connection.writer.write(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        reading = asyncio.create_task(connection.read())
        while not reading.done():
            connection.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert_problem(await reading, 408, "request-timeout")


async def test_a_large_beginning_buys_no_time_for_a_body_that_dribbles() -> None:
    async with open_fixture(body_timeout_seconds=0.5) as fixture, await fixture.connect() as connection:
        connection.writer.write(
            b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 8_000_000
        )
        reading = asyncio.create_task(connection.read())
        start = time.monotonic()
        while not reading.done():
            connection.writer.write(b"x")
            await asyncio.sleep(0.2)
        assert_problem(await reading, 408, "request-timeout")
        assert time.monotonic() - start < 60, "not after the 122 s that 8 MB may take"


async def test_a_body_that_keeps_the_pace_may_take_longer_than_the_timeout() -> None:
    async with open_fixture(body_timeout_seconds=1.5) as fixture, await fixture.connect() as connection:
        connection.writer.write(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 262144\r\n\r\n")
        for _ in range(16):  # 16 KiB each 0.12 s are 133 KiB/s
            connection.writer.write(b"x" * 16384)
            await asyncio.sleep(0.12)
        assert (await connection.read()).body == b"262144"


async def test_200_dribbling_connections_are_closed_in_time_and_harm_nobody() -> None:
    async with open_fixture(header_timeout_seconds=1) as fixture:
        dribblers = await asyncio.gather(*(fixture.connect() for _ in range(200)))
        closed = [asyncio.create_task(dribbler.is_closed(PLENTY)) for dribbler in dribblers]
        async with await fixture.connect() as connection:
            start = time.monotonic()
            while not all(task.done() for task in closed):
                for number, dribbler in enumerate(dribblers):
                    dribbler.writer.write(b"G" if number % 2 and time.monotonic() - start < 0.02 else b"\r\n")
                assert (await exchange(connection, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
                await asyncio.sleep(0.05)
        assert all(task.result() for task in closed)
        assert time.monotonic() - start < 30, "not after the 65 s of an idle connection"
        for dribbler in dribblers:
            dribbler.close()


# Bodies


@pytest.mark.parametrize("target", ["/refuse", "/refuse?read"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_sends_on_can_read_an_early_answer(target: str, framing: str) -> None:
    body = b"x" * 11 * 2**20
    async with open_fixture() as fixture, await fixture.connect() as connection:
        if framing == "length":
            fields, content = b"Content-Length: %d" % len(body), body
        else:
            fields, content = b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        connection.writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (target.encode(), fields) + content)
        async with asyncio.timeout(PLENTY):
            await connection.writer.drain()  # Reads nothing before all is sent, like many a simple client.
            response = await connection.read()
        assert response.status == 413
        assert response.headers["connection"] == "close"
        assert await connection.is_closed(PLENTY)


async def test_a_refused_client_that_never_stops_sending_is_cut_off() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(b"POST /refuse HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await connection.read()).status == 413
        start = time.monotonic()
        with pytest.raises(OSError):
            while True:
                connection.writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await connection.writer.drain()
                await asyncio.sleep(0.01)
        assert time.monotonic() - start < PLENTY


async def test_the_application_gets_a_body_in_parts_of_64_kib_at_most() -> None:
    body = b"x" * 3_000_000
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert (await connection.read()).body == b"3000000"
        assert fixture.largest_message <= 65536


async def test_a_client_that_expects_100_continue_gets_it_when_its_body_is_wanted() -> None:
    head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with open_fixture() as fixture:
        async with await fixture.connect() as connection:
            connection.writer.write(head % b"/count")
            assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await exchange(connection, b"abc")).body == b"3"
        async with await fixture.connect() as connection:
            connection.writer.write(head % b"/refuse")
            assert (await connection.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")


async def test_trailers_do_not_become_headers() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        head = b"POST /count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        response = await exchange(connection, head + b"3\r\nabc\r\n0\r\nAuthorization: me\r\n\r\n")
        assert response.body == b"3"
        assert b"authorization" not in fixture.headers


# Connections


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        post = b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        gets = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(50)]
        connection.writer.write(b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\n" + post + b"".join(gets))
        await becomes(lambda: fixture.paths == ["/gate"])
        fixture.gate.set()
        bodies = [(await connection.read()).body for _ in range(52)]
        assert bodies == [b"/gate", b"3"] + [b"/%d" % number for number in range(50)]
        assert fixture.state.total_requests == 52


async def test_a_refusal_waits_for_the_answers_before_it() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(
            b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\x16garbage\r\n\r\n"
        )
        await becomes(lambda: fixture.paths == ["/gate"])
        fixture.gate.set()
        assert (await connection.read()).body == b"/gate"
        assert (await connection.read()).body == b"/2"
        assert_problem(await connection.read(), 400, "malformed-request")
        assert await connection.is_closed(PLENTY)


async def test_a_client_that_leaves_cancels_its_request_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with open_fixture() as fixture:
        async with await fixture.connect() as connection:
            connection.writer.write(b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\n")
            await becomes(lambda: fixture.paths == ["/gate"])
        await becomes(lambda: fixture.cancelled == ["/gate"])
        await becomes(lambda: not fixture.state.tasks and not fixture.state.connections)
    assert caplog.records == []


async def test_a_client_that_leaves_within_a_request_leaves_nothing_behind() -> None:
    async with open_fixture() as fixture:
        parts = (
            b"",
            b"GE",
            b"GET / HTTP/1.1\r\nHo",
            b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc",
        )
        for part in parts:
            async with await fixture.connect() as connection:
                connection.writer.write(part)
                await becomes(lambda: len(fixture.state.connections) == 1)
            await becomes(lambda: not fixture.state.connections and not fixture.state.tasks)


async def test_a_head_and_a_body_in_single_bytes_are_one_request() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        for byte in b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc":
            connection.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await connection.read()).body == b"3"
        assert fixture.paths == ["/count"]


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_is_the_bodys(protocol: str) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol.encode()
    post = (
        b"POST /count HTTP/1.1\r\nHost: a\r\n" + offer + b"Content-Length: 27\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n\r"
    )
    get = b"GET /plain HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n"
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(post + get)
        assert (await connection.read()).body == b"27"
        assert (await connection.read()).body == b"/plain"
        assert fixture.paths == ["/count", "/plain"]


async def test_thousands_of_offers_to_upgrade_in_one_read_are_that_many_requests() -> None:
    get = b"GET /plain HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(get * 2000)
        for _ in range(2000):
            assert (await connection.read()).body == b"/plain"


async def test_http_1_0_is_answered_and_the_connection_closed() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        response = await exchange(connection, b"GET /old HTTP/1.0\r\n\r\n")
        assert (response.body, response.headers["connection"]) == (b"/old", "close")
        assert await connection.is_closed(PLENTY)


async def test_head_has_no_body_and_the_connection_goes_on() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        response = await connection.request("HEAD", "/headed")
        assert (response.status, response.headers["content-length"]) == (200, "7")
        assert (await connection.get("/next")).body == b"/next"


async def test_while_draining_every_answer_closes_its_connection() -> None:
    async with open_fixture() as fixture, await fixture.connect() as waiting, await fixture.connect() as connection:
        waiting.writer.write(b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\n")
        assert "connection" not in (await connection.get("/before")).headers
        fixture.runtime.draining = True
        assert (await connection.get("/after")).headers["connection"] == "close"
        assert await connection.is_closed(PLENTY)
        fixture.gate.set()
        assert (await waiting.read()).headers["connection"] == "close"
