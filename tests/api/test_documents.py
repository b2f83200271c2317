"""The description and its page: kept, revalidated and compressed as HTTP has it, and complete without the internet."""

from __future__ import annotations

import gzip
import re
import zlib

import pytest

from tests.support.client import fetch
from tests.support.server import Server

pytestmark = pytest.mark.anyio

DOCUMENTS = ["/docs", "/openapi.json", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/favicon.png"]


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_a_document_may_be_kept_and_is_revalidated_in_each_coding(server: Server, path: str) -> None:
    plain = await fetch(server.address, path)
    tags = {plain.headers["etag"]}
    for accepted, decompress in (("gzip", gzip.decompress), ("gzip;q=0, deflate;q=0.5", zlib.decompress)):
        picky = {"Accept-Encoding": accepted}
        coded, head = await fetch(server.address, path, headers=picky), await fetch(server.address, path, "HEAD", picky)
        assert coded.headers.keys() == head.headers.keys()
        assert coded.headers["content-length"] == head.headers["content-length"]
        if "content-encoding" in coded.headers:
            assert len(coded.body) < len(plain.body) / 2 or path == "/docs"
            assert decompress(coded.body) == plain.body
        else:
            assert (path, coded.body) == ("/docs/assets/favicon.png", plain.body)
        tags.add(coded.headers["etag"])
        for condition in (coded.headers["etag"], f'"a", W/{coded.headers["etag"]}', "*"):
            unchanged = await fetch(server.address, path, headers={**picky, "If-None-Match": condition})
            assert (unchanged.status, unchanged.body) == (304, b"")
            for name in ("etag", "cache-control", "vary"):
                assert unchanged.headers[name] == coded.headers[name]
        assert (await fetch(server.address, path, headers={**picky, "If-None-Match": '"a"'})).status == 200
        assert (await fetch(server.address, path, headers={**picky, "If-Match": coded.headers["etag"]})).status == 200
        assert (await fetch(server.address, path, headers={**picky, "If-Match": '"a", W/"b"'})).status == 412
    assert plain.headers["vary"] == "accept-encoding"
    assert len(tags) == (1 if path.endswith(".png") else 3), "strong tags differ where the bytes do"
    assert (
        "content-encoding" not in (await fetch(server.address, path, headers={"Accept-Encoding": "br, *;q=0"})).headers
    )


async def test_what_is_no_file_of_the_documentation_is_not_found(server: Server) -> None:
    for name in ("", "nothing.js", "../docs.py", "%2e%2e%2fdocs.py", "swagger-ui.css/"):
        missing = await fetch(server.address, f"/docs/assets/{name}")
        assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")


async def test_the_documentation_page_needs_nothing_from_elsewhere(server: Server) -> None:
    page = await fetch(server.address, "/docs")
    needed = re.findall(r'(?:src|href|url)\s*[=:]\s*[\'"]([^\'"]+)', page.body.decode())
    assert '"query"' in page.body.decode(), "Swagger UI would let nobody try QUERY"
    assert {"/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css", "/openapi.json"} <= set(needed)
    assert [(url, (await fetch(server.address, url)).status) for url in needed] == [(url, 200) for url in needed]
