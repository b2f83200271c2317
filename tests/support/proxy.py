"""The fault proxy: a TCP relay in front of Redis that can be told, while it runs, how to misbehave."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from tests.support.process import PATIENCE, free_port

Fault = Literal["none", "refuse", "reset", "cut", "cut mid-reply", "black hole", "slices"]
Queue = asyncio.Queue[tuple[float, bytes]]
CHUNK = 65536


class FaultProxy:
    """Relays ``127.0.0.1:port`` to ``127.0.0.1:upstream`` in a thread of its own.

    ``set(fault, delay)`` takes effect on open connections and on new ones:
    refuse        nothing listens, open connections are reset
    reset         every connection is reset as soon as it sends something
    cut           every connection is closed in good order as soon as it sends something
    cut mid-reply half of each reply arrives, then the connection closes
    black hole    connections are taken, bytes are swallowed, nothing ever comes back
    slices        replies arrive in writes of one byte
    ``delay`` seconds are added to each direction, without lowering the throughput.
    """

    def __init__(self, upstream: int):
        self.upstream, self.port = upstream, free_port()
        self.fault: Fault = "none"
        self.delay = 0.0
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def set(self, fault: Fault = "none", delay: float = 0.0) -> None:
        """Misbehave like this from now on; returns once it holds."""
        asyncio.run_coroutine_threadsafe(self._set(fault, delay), self._loop).result(PATIENCE)

    def start(self) -> None:
        self._thread.start()
        self.set("none")

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _set(self, fault: Fault, delay: float) -> None:
        self.fault, self.delay = fault, delay
        if fault == "refuse":
            await self._close()
        elif self._listener is None:
            self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=1024)

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in list(self._open):
            _reset(writer)
        for relay in list(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.current_task()
        assert relay is not None
        self._relays.add(relay)
        self._open.add(writer)
        self.connections += 1
        try:
            with suppress(OSError, asyncio.CancelledError):
                await self._relay(reader, writer)
        finally:
            self._relays.discard(relay)
            self._open.discard(writer)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        requests: Queue = asyncio.Queue()
        replies: Queue = asyncio.Queue()
        taking = [self._take(reader, requests), self._take(up_reader, replies)]
        giving = [self._give(requests, up_writer, writer), self._give(replies, writer, writer, reply=True)]
        givers = [asyncio.ensure_future(part) for part in giving]
        tasks = [*givers, *(asyncio.ensure_future(part) for part in taking)]
        try:
            await asyncio.wait(givers, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            up_writer.close()

    async def _take(self, source: asyncio.StreamReader, queue: Queue) -> None:
        """Everything that arrives, with the time at which it is due; last the empty end."""
        try:
            while data := await source.read(CHUNK):
                queue.put_nowait((self._loop.time() + self.delay, data))
        finally:
            queue.put_nowait((self._loop.time() + self.delay, b""))

    async def _give(
        self, queue: Queue, sink: asyncio.StreamWriter, client: asyncio.StreamWriter, *, reply: bool = False
    ) -> None:
        """Pass on what is due, as the fault of the moment has it; returns when the connection is to end."""
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if self.fault == "reset":
                _reset(client)
            if not data or self.fault in ("reset", "cut"):
                return
            if self.fault == "cut mid-reply" and reply:
                sink.write(data[: len(data) // 2])
                await sink.drain()
                return
            if self.fault == "slices" and reply:
                await _dribble(sink, data)
            elif self.fault != "black hole":
                sink.write(data)
                await sink.drain()


async def _dribble(sink: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        sink.write(bytes([byte]))
        await asyncio.sleep(0)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def fault_proxy(upstream: int) -> Iterator[FaultProxy]:
    """A relay to the local port ``upstream`` that is gone afterwards."""
    proxy = FaultProxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
