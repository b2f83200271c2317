"""What is no request as RFC 9110 and 9112 have it is refused, with the status that they name, and all else served."""

from __future__ import annotations

import pytest

from tests.process.fixture import PLENTY, anyio_backend, assert_problem, exchange, open_fixture  # noqa: F401
from tests.support.process import becomes

pytestmark = pytest.mark.anyio

CHUNKED = b"POST /count HTTP/%b\r\nHost: a\r\n%b\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

MALFORMED = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts, 1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, turned round": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
    ),
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
    "coding not chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunked not last": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: a\n\n",
    "control character": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    "raw bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target that is no path": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment behind a query": b"GET /?a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "all targets": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user in the target": b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a version that is none": b"GET / HTTP/11.1\r\nHost: a\r\n\r\n",
    **{
        f"{method} by RTSP/1.{minor}": b"%b / RTSP/1.%d\r\nHost: a\r\n\r\n" % (method.encode(), minor)
        for method in ("GET", "POST", "OPTIONS")
        for minor in (0, 1)
    },
    "RTSP without a header": b"GET / RTSP/1.0\r\n\r\n",
    "chunked twice": CHUNKED % (b"1.1", b"Transfer-Encoding: chunked, chunked"),
    "chunked in HTTP/1.0": CHUNKED % (b"1.0", b"Transfer-Encoding: chunked"),
} | {
    f"the host {host!r}": b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
    for host in (
        b"a b",
        b"@",
        b"me@a",
        b"[::1",
        b"[:::]",
        b"[1.2.3.4]",
        b"a/b",
        b"a\x80",
        b"a:b",
        b"a%2",
        b'"a"',
    )
}


NOT_SUPPORTED = {
    "unknown method": b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n",
    "part of an unknown method": b"BR",
    "method of another protocol": b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",
    "another protocol and its method": b"SOURCE / ICE/1.1\r\nHost: a\r\n\r\n",
    "method in small letters": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    "gzip, chunked": CHUNKED % (b"1.1", b"Transfer-Encoding: gzip, chunked"),
    "gzip and chunked": CHUNKED % (b"1.1", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
    "identity, chunked": CHUNKED % (b"1.1", b"Transfer-Encoding: identity, Chunked"),
}
OTHER_VERSIONS = {
    "HTTP/2": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3": b"GET / HTTP/3.7\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
}


REFUSED = [
    *(pytest.param(request, 400, "malformed-request", id=name) for name, request in MALFORMED.items()),
    *(pytest.param(request, 505, "version-not-supported", id=name) for name, request in OTHER_VERSIONS.items()),
]


@pytest.mark.parametrize(("request_bytes", "status", "kind"), REFUSED)
async def test_what_is_not_http_1_as_it_should_be_never_reaches_the_application(
    request_bytes: bytes, status: int, kind: str
) -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        assert_problem(await exchange(connection, request_bytes), status, kind)
        assert await connection.is_closed(PLENTY)
        assert fixture.paths == [] or fixture.cancelled == fixture.paths


async def test_the_refusal_of_a_head_has_no_body() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(b"HEAD / HTTP/1.1\r\n\r\n")
        head, end, rest = (await connection.reader.read()).partition(b"\r\n\r\n")
        assert (head[:13], end, rest) == (b"HTTP/1.1 400 ", b"\r\n\r\n", b"")
        assert b"content-length: " in head


async def test_another_protocol_is_seen_in_whatever_pieces_it_arrives_and_behind_a_body() -> None:
    before, rtsp = CHUNKED % (b"1.1", b"Transfer-Encoding: chunked"), b"GET /a  RTSP/1.0\r\nHost: a\r\n\r\n"
    async with open_fixture() as fixture:
        for cut in range(len(rtsp)):
            async with await fixture.connect() as connection:
                connection.writer.write(before + rtsp[:cut])
                assert (await connection.read()).body == b"3"
                assert_problem(await exchange(connection, rtsp[cut:]), 400, "malformed-request")
        assert set(fixture.paths) == {"/count"}


@pytest.mark.parametrize("request_bytes", NOT_SUPPORTED.values(), ids=NOT_SUPPORTED.keys())
async def test_a_method_or_coding_that_is_implemented_nowhere_is_501(request_bytes: bytes) -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        # Behind another request, and behind a body that ends like a method.
        connection.writer.write(b"POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nGET")
        assert (await exchange(connection, request_bytes)).body == b"3"
        assert_problem(await connection.read(), 501, "not-supported")
        assert fixture.paths == ["/count"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE"])
async def test_a_known_method_is_the_applications_to_refuse(method: str) -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        assert (await connection.request(method, "/echo")).body == b"/echo"


async def test_a_later_minor_version_is_served_as_http_1_1() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        for _ in range(2):
            response = await exchange(connection, b"GET /new HTTP/1.9\r\nHost: a\r\n\r\n")
            assert (response.body, response.headers.get("connection")) == (b"/new", None)


@pytest.mark.parametrize(
    "host", ["", "a", "a.b-c_d:80", "a:", "127.0.0.1", "[::1]", "[::ffff:1.2.3.4]:80", "%C3%A9.example", "[v1.a:b]"]
)
async def test_every_host_that_rfc_3986_allows_is_served(host: str) -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        assert (await exchange(connection, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())).status == 200


async def test_a_target_may_be_absolute() -> None:
    async with open_fixture() as fixture, await fixture.connect() as connection:
        for target, path in ((b"http://a/b?c", b"/b"), (b"HTTPS://a", b"/")):
            assert (await exchange(connection, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)).body == path


async def test_http_1_0_knows_no_100_continue() -> None:
    head = b"POST /count HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    async with open_fixture() as fixture, await fixture.connect() as connection:
        connection.writer.write(head)
        await becomes(lambda: fixture.paths == ["/count"])
        connection.writer.write(b"abc")
        assert (await connection.reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_what_never_reaches_the_application_is_counted_like_an_answer() -> None:
    async with open_fixture(max_url_bytes=300) as fixture:
        for request in (MALFORMED["garbage"], MALFORMED["no host"], b"GET /" + b"a" * 300 + b" HTTP/1.1\r\n\r\n"):
            async with await fixture.connect() as connection:
                await exchange(connection, request)
        fixture.runtime.metrics.flush()
        shown = fixture.runtime.metrics.exposition().decode()
        assert 'predict_requests_total{route="unknown",status="400"} 2.0' in shown
        assert 'predict_requests_total{route="unknown",status="414"} 1.0' in shown
