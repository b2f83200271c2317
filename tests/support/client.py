"""A small HTTP/1.1 client that speaks bytes: hundreds of requests at once, half-sent ones, and ones that are wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import http_sf

Address = tuple[str, int]


@dataclass(frozen=True)
class Response:
    """``headers``: lower-case names, repeated ones joined by commas. ``seconds``: from connecting to the last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float = field(compare=False)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cache(self) -> dict[str, Any]:
        """The parameters of this cache's member of Cache-Status, parsed as RFC 9651 says."""
        members: Any = http_sf.parse(self.headers["cache-status"].encode(), tltype="list")
        assert len(members) == 1, members
        name, parameters = members[0]
        assert str(name) == "predict", name
        return {key: str(value) if isinstance(value, http_sf.Token) else value for key, value in parameters.items()}

    @property
    def hit(self) -> bool:
        return self.cache.get("hit", False) is True

    @property
    def age(self) -> int:
        """Whole seconds; 0 when the header is absent."""
        return int(self.headers.get("age", "0"))

    @property
    def max_age(self) -> int:
        for directive in self.headers["cache-control"].split(","):
            name, _, value = directive.strip().partition("=")
            if name == "max-age":
                return int(value)
        raise AssertionError(f"no max-age in {self.headers['cache-control']}")


class Connection:
    """One keep-alive connection, and so one worker for as long as it lasts."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, address: Address) -> Self:
        return cls(*await asyncio.open_connection(*address))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def get(self, target: str, headers: Mapping[str, str] | None = None) -> Response:
        return await self.request("GET", target, headers)

    async def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        start = time.perf_counter()
        self.send(method, target, headers, body)
        return await self.read(method, start)

    def send(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> None:
        """Write a request and do not wait for anything."""
        lines = [f"{method} {target} HTTP/1.1", "Host: test"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None and not any(name.lower() == "content-length" for name in headers or ()):
            lines.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))

    async def read(self, method: str = "GET", start: float | None = None) -> Response:
        """The next response; raises asyncio.IncompleteReadError when the server closes before its end."""
        start = time.perf_counter() if start is None else start
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head[:-4].split("\r\n")
        status = int(status_line.split(" ", 2)[1])
        if 100 <= status < 200:
            return await self.read(method, start)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            known = headers.get(name.lower())
            headers[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"
        body = await self._body(method, status, headers)
        return Response(status, headers, body, time.perf_counter() - start)

    async def _body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        if method == "HEAD" or status in (204, 304):
            return b""
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunks()
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    async def _chunks(self) -> bytes:
        body = b""
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return body

    async def is_closed(self, within: float) -> bool:
        """Whether the server ends the connection in that time, whatever it sends before."""
        try:
            async with asyncio.timeout(within):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    @property
    def port(self) -> int:
        """This end's."""
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        """Leave without a goodbye."""
        self.writer.transport.abort()


async def fetch(
    address: Address,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Response:
    """One request on a connection of its own; ``seconds`` include the connecting."""
    start = time.perf_counter()
    async with await Connection.open(address) as connection:
        connection.send(method, target, headers, body)
        return await connection.read(method, start)


async def fetch_json(address: Address, target: str, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """POST a JSON value."""
    content = {"Content-Type": "application/json", **(headers or {})}
    return await fetch(address, target, "POST", content, json.dumps(value).encode())


async def caught_up(address: Address) -> None:
    """Return when a service of one worker has seen all that was sent, and who has left, before this call.

    It has once it answers somebody who came after; twice, so that what it saw has had its turns of the loop.
    """
    for _ in range(2):
        await fetch(address, "/livez")


async def burst(address: Address, targets: list[str]) -> list[Response]:
    """All of them at once, each on a connection that was opened before the first is sent."""
    connections = await asyncio.gather(*(Connection.open(address) for _ in targets))
    try:
        return list(await asyncio.gather(*(c.get(t) for c, t in zip(connections, targets, strict=True))))
    finally:
        for connection in connections:
            connection.close()
