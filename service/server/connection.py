"""One HTTP connection: uvicorn's httptools protocol, and what it leaves out.

- Deadlines for reading and writing (timeouts.py), limits and checks of a head (request_reader.py).
- A request that never reaches the application is answered with a problem document.
- A client that leaves cancels the task of its request (cycle.py), so the application need not watch for it.
- Pipelined answers stay in order when one of the requests is refused.
- A connection that is closed while input still arrives lingers, so its client can read the last answer (closing.py).
- Hits that the ordinary path has vetted are answered here (hit_table.py).
- While the service drains, every answer carries ``Connection: close``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from os import write
from time import monotonic
from typing import Any
from uuid import uuid4

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.config import Settings
from service.errors import ServiceError
from service.rate_limit import ConnectionLimit
from service.server.closing import Lingering, refusal
from service.server.cycle import Cycle
from service.server.hit_table import Hit, HitTable
from service.server.request_key import MAX_HEAD_BYTES, SMALL_BODY_BYTES, WITH_BODY, Upload, request_key
from service.server.request_reader import RequestReader
from service.server.timeouts import BODY, NOTHING, REFUSED

NO_HITS: Mapping[bytes, Hit] = {}
LONGEST_SPELLING = MAX_HEAD_BYTES + SMALL_BODY_BYTES


def protocol_class(settings: Settings) -> type[Connection]:
    """The protocol with the limits of these settings."""
    limits = {"settings": settings, "connection_limit": ConnectionLimit(settings.client_connections)}
    return type("LimitedConnection", (Connection,), limits)


class Connection(RequestReader):
    """``running``: the request being answered. ``pipeline``: the requests behind it, newest first. ``cycle``: the
    newest of all; its body may still be arriving.

    ``_hot``: the requests that the next read is compared with. After a hit that was written completely these are all
    that the hit table has: no request runs, arrives or waits here. Otherwise there are none. ``_key``: what the answer
    depends on besides the body. ``_spelling``: the read that began with the newest request, unless its head came in
    several. ``_upload``: the body of that request, if it may be a hit once it has arrived.
    """

    # Every hit reads these. A slot is twice as fast as the dictionary, which has more keys than Python can share.
    __slots__ = ("_fd", "_hot", "_idle_offset")
    _fd: int
    _hot: Mapping[bytes, Hit]
    _idle_offset: float
    connection_limit: ConnectionLimit

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hits: HitTable | None = self.app_state.get("hits")
        if self._hits is not None:
            self._hits.server_state = self.server_state
        self._hot = NO_HITS
        self._key: bytes | None = None
        self._spelling = b""
        self._upload: Upload | None = None
        # Makes a deadline by the loop's clock out of time.monotonic(): the two clocks may start at different times.
        self._idle_offset = self.settings.keep_alive_seconds + self.loop.time() - monotonic()
        self.running: Cycle | None = None
        self._last_words: bytes | None = None

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._fd = transport.get_extra_info("socket").fileno()
        if self.client is not None and (refused := self.connection_limit.open(self.client[0])):
            self._refuse(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.client is not None:
            self.connection_limit.close(self.client[0])
        self.pipeline.clear()
        if self._upload is not None:
            self._upload.release()
            self._upload = None
        if self.running is not None:
            self.running.abandon()
            self.running = None

    def data_received(self, data: bytes) -> None:
        hot = self._hot
        hit = hot.get(data) if hot and len(data) <= LONGEST_SPELLING else None  # or Python would hash all of a body
        if hit is not None:
            # What HitTable.current and _answer_at_once do, written out here: calls would be a tenth of a hit's cost.
            now, tally = monotonic(), hit.tally
            left = tally.left
            if left and now < hit.until and hit.entry.kept_as is not None:
                tally.left = left - 1
                self._deadline = now + self._idle_offset
                response = hit.response
                try:
                    sent = write(self._fd, response)
                except OSError:  # a full buffer, or a lost connection: the transport takes care of both
                    sent = 0
                if sent < len(response):
                    self._hot = NO_HITS
                    self.transport.write(response[sent:])
                return
        super().data_received(data)

    # What the reader calls

    def on_message_begin(self) -> None:
        self._hot = NO_HITS
        self._key = None
        super().on_message_begin()

    def _collect(self, body: bytes) -> None:
        if self._upload is not None and not self._upload.add(body):
            self._start_postponed(self._upload)  # for want of room, which the application will say
        if self._upload is None:
            super()._collect(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        upload = self._upload
        if upload is not None and not self._answer_upload(upload, self.cycle):
            self.cycle.scope["digest"] = upload.digest  # type: ignore[typeddict-unknown-key]
            self._start_postponed(upload)

    def _start_postponed(self, upload: Upload) -> None:
        """Give the request to the application, because it is no hit."""
        self._upload = None
        self.cycle.body += b"".join(upload.release())
        self._start_asgi_task(self.cycle, self.app)

    def _begin(self, version: str) -> None:
        self.scope["head"] = self._key  # type: ignore[typeddict-unknown-key]
        previous = self.cycle
        self.cycle = cycle = Cycle(self, version)
        if previous is not None and not previous.response_complete:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        elif self._hits is not None and self._key is not None and self._key in self._hits.awaited:
            self._upload = Upload(self._key, self._hits.bodies, self._hits.known)
        else:
            self._start_asgi_task(cycle, self.app)

    def _answer_at_once(self, method: bytes) -> bool:
        hits = self._hits
        if hits is None or self._hosts != 1:
            return False
        self._key = request_key(method, self.url, self.headers)
        # Only what one read brought as a whole may enter the hit table as it was received.
        self._spelling = b"" if self._reads or self._behind_body else self._received
        if self._key is None or self.running is not None or method in WITH_BODY:
            return False
        hit = hits.by_key.get(self._key)
        return hit is not None and self._answer(hits, hit, 0)

    def _answer_upload(self, upload: Upload, cycle: RequestResponseCycle) -> bool:
        """Answer the request whose body has now arrived, if it is a hit."""
        assert self._hits is not None
        key, identifier = upload.key()
        hit = self._hits.find(key, identifier)
        if hit is None or not cycle.keep_alive or not self._answer(self._hits, hit, upload.size, identifier):
            return False
        self._upload = None
        upload.release()
        if upload.is_hashed:
            self._hits.count_body(upload.size)
        cycle.response_started = cycle.response_complete = True
        return True

    def _answer(self, hits: HitTable, hit: Hit, body_size: int, identifier: bytes | None = None) -> bool:
        if self.flow.write_paused or self.transport.is_closing() or not hits.current(hit):
            return False
        answer = hit.response if identifier is None else hit.answer_to(identifier)
        sent = 0
        if not self.transport.get_write_buffer_size():
            with suppress(OSError):
                sent = write(self._fd, answer)
        if sent == len(answer):
            self._hot = hits.by_spelling
        else:
            self.transport.write(answer[sent:])
        if identifier is None:
            hits.spell(hit, self._spelling, self.parser.get_method(), self.url, body_size)
        self._set_deadline(self.loop.time() + self.settings.keep_alive_seconds)
        return True

    # One request after the other

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        assert isinstance(cycle, Cycle)
        self.running = cycle
        cycle.scope["respond"] = cycle.respond  # type: ignore[typeddict-unknown-key]
        cycle.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        cycle, self.running = self.running, None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._start_write_timer()
        elif cycle is not None and cycle.lingers:
            self._linger()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last_words()
        else:
            self.flow.resume_reading()
            if self._arriving == NOTHING:
                self._set_deadline(self.loop.time() + self.settings.keep_alive_seconds)

    # Refusals

    def _refuse(self, error: ServiceError) -> None:
        """Answer, after the requests before it, one that cannot be served, and close the connection."""
        if self._arriving == REFUSED:
            return
        broken_body = self._arriving == BODY
        self._arriving = REFUSED
        if broken_body and self.pipeline:
            self.pipeline.popleft()
        elif broken_body and self.running is not None:
            if self.running.response_started:
                self._close()
                return
            self.running.abandon()
            self.running = None
        if (runtime := self.app_state.get("runtime")) is not None:
            runtime.metrics.refused(error.status)
            runtime.refusals.add(error, client=self.client[0] if self.client else None)
        is_head = bool(self.url) and self.parser.get_method() == b"HEAD"
        self._last_words = refusal(error, self.url, self.server_state.default_headers, is_head, uuid4().hex)
        if self.running is None:
            self._say_last_words()
        else:
            self.flow.pause_reading()

    def _say_last_words(self) -> None:
        assert self._last_words is not None
        self.server_state.total_requests += 1
        self.transport.write(self._last_words)
        self._linger()

    def _linger(self) -> None:
        self._arriving = REFUSED
        self._deadline = math.inf
        self._stop_write_timer()  # Lingering has its own.
        self.flow.resume_reading()
        if not self.transport.is_closing():
            seconds = self.settings.write_timeout_seconds
            self.transport.set_protocol(Lingering(self.transport, self.loop, seconds, self.connection_lost))
