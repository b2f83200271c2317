"""A keep-alive HTTP/1.1 client with as little of its own time in the numbers as Python allows."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Address = tuple[str, int]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """One response. ``seconds``: from when it was sent, or due, to the last byte received."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    def header(self, name: str) -> str:
        """The value of the first header of that name, or an empty string."""
        found = re.search(rb"\r\n" + re.escape(name.encode()) + rb": *([^\r\n]*)", self.head, re.IGNORECASE)
        return found[1].decode("latin-1") if found else ""

    @property
    def outcome(self) -> str:
        """``L1`` or ``L2`` for a hit there, ``collapsed`` for a shared computation, else ``computed``."""
        status = self.header("Cache-Status")
        if "; hit" in status:
            return "L2" if "detail=L2" in status else "L1"
        return "collapsed" if "; collapsed" in status else "computed"


def get(target: str, headers: str = "") -> bytes:
    """The bytes of a GET. ``headers``: whole lines, each ended by CRLF."""
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def post(target: str, body: bytes, content_type: str = "application/json", headers: str = "") -> bytes:
    """The bytes of a POST. ``headers``: as of ``get``."""
    lines = [
        f"POST {target} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join([*lines, headers]) + "\r\n").encode() + body


def address_of(url: str) -> Address:
    """Host and port of an ``http://`` URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


class Connection:
    """One blocking keep-alive connection, one request at a time. Use as a context manager."""

    def __init__(self, address: Address, timeout: float = 30) -> None:
        self.socket = socket.create_connection(address, timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> Reply:
        """Send and wait for the answer; raises OSError when the server closes or times out."""
        self.send(request)
        return self.receive()

    def send(self, request: bytes, due: float | None = None) -> None:
        """``due``: when it should have been sent, by ``time.perf_counter``, if that was earlier than now."""
        self._began = time.perf_counter() if due is None else due
        self.socket.sendall(request)

    def receive(self) -> Reply:
        """The answer to what was sent last. Bodies need a Content-Length: no server measured here sends chunks."""
        data = self.socket.recv(65536)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        declared = _LENGTH.search(data, 0, end)
        if declared is None:
            raise OSError(f"an answer without Content-Length: {data[:end]!r}")
        whole = end + 4 + int(declared[1])
        while len(data) < whole:
            data += self._more()
        seconds = time.perf_counter() - self._began
        return Reply(int(data[9:12]), data[:end], data[end + 4 : whole], seconds)

    def _more(self) -> bytes:
        if data := self.socket.recv(65536):
            return data
        raise OSError("the server closed the connection")


def one_by_one(address: Address, requests: Iterable[bytes]) -> Iterator[Reply]:
    """Ask one after the other on one connection: latency without any queueing."""
    with Connection(address) as connection:
        for request in requests:
            yield connection.ask(request)


def closed_loop(
    address: Address, requests: Iterator[bytes], concurrency: int, seconds: float, seen: Callable[[Reply], object]
) -> float:
    """Keep ``concurrency`` requests in flight for ``seconds`` or until there are no more; the seconds it really took.

    ``seen`` is called with every reply, in the order of arrival.
    """
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        began = time.perf_counter()
        in_flight = 0
        for _, request in zip(range(concurrency), requests, strict=False):
            connection = stack.enter_context(Connection(address))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request)
            in_flight += 1
        while in_flight:
            for key in _readable(selector):
                connection = key.data
                seen(connection.receive())
                request = next(requests, b"") if time.perf_counter() - began < seconds else b""
                if request:
                    connection.send(request)
                else:
                    in_flight -= 1
        return time.perf_counter() - began


def open_loop(
    address: Address, requests: Iterator[bytes], rate: float, seconds: float, seen: Callable[[Reply], object]
) -> None:
    """Send ``rate`` requests a second whether or not others are answered, each timed from when it was due."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        idle: list[Connection] = []
        count, sent, received = int(rate * seconds), 0, 0
        began = time.perf_counter()
        while received < count:
            due = began + sent / rate
            while sent < count and due <= time.perf_counter():
                if not idle:
                    idle.append(stack.enter_context(Connection(address)))
                    selector.register(idle[-1].socket, selectors.EVENT_READ, idle[-1])
                idle.pop().send(next(requests), due)
                sent += 1
                due = began + sent / rate
            patience = max(0.0, due - time.perf_counter()) if sent < count else 60
            for key, _ in selector.select(patience):
                seen(key.data.receive())
                idle.append(key.data)
                received += 1


def burst(address: Address, request: bytes, count: int) -> tuple[list[Reply], float]:
    """``count`` identical requests, each on a connection opened beforehand; the replies and the seconds in all."""
    replies: list[Reply] = []
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(address)) for _ in range(count)]
        selector = stack.enter_context(selectors.DefaultSelector())
        began = time.perf_counter()
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request)
        while len(replies) < count:
            for key in _readable(selector):
                replies.append(key.data.receive())
                selector.unregister(key.fileobj)
        return replies, time.perf_counter() - began


def _readable(selector: selectors.BaseSelector, patience: float = 60) -> list[selectors.SelectorKey]:
    if ready := selector.select(patience):
        return [key for key, _ in ready]
    raise TimeoutError(f"no answer within {patience:.0f} s")
