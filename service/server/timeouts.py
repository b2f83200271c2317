"""The time a client has to send and to read, on uvicorn's httptools protocol."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.config import Settings
from service.errors import RequestTimeout, ServiceError

BODY_BYTES_PER_SECOND = 64 * 2**10
NOTHING, HEAD, BODY, REFUSED = range(4)
"""What the next input belongs to. After a refusal, input is ignored."""


class TimedProtocol(HttpToolsProtocol):
    """One timer for input. A new deadline is one assignment: the timer is moved only when it would expire too late.
    Another timer runs while the client has not read what was written, or the connection is closing.

    ``_arriving``: what the next input belongs to.
    """

    __slots__ = ("_deadline",)
    _deadline: float

    settings: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving = NOTHING
        self._body_due = math.inf
        self._body_bytes = 0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline(self.loop.time() + self.settings.header_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stop_write_timer()

    def _refuse(self, error: ServiceError) -> None:
        """Answer a request that cannot be served, and close the connection."""
        raise NotImplementedError

    def _await_body(self) -> None:
        """Bytes that arrive faster than the pace give no more time than one pause. So a client that sends the beginning
        fast cannot then send a byte at a time."""
        longest = self.loop.time() + self.settings.body_timeout_seconds
        self._body_due = min(longest, self._body_due + self._body_bytes / BODY_BYTES_PER_SECOND)
        self._body_bytes = 0
        self._set_deadline(self._body_due)

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.loop.time() < self._deadline:  # The deadline has moved since the timer was set, perhaps to never.
            if self._deadline < math.inf:
                self._set_deadline(self._deadline)
        elif self._arriving == NOTHING:
            self._close()
        elif self.flow.read_paused or (self._arriving == BODY and self.cycle.waiting_for_100_continue):
            # The client is not to blame: it was told to wait.
            self._body_due = self.loop.time() + self.settings.body_timeout_seconds
            self._set_deadline(self._body_due)
        else:
            self._refuse(RequestTimeout("The request did not arrive in time."))

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._start_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()
        if self.transport.is_closing():
            self._start_write_timer()

    def _close(self) -> None:
        """Close once the client has read everything, or its time for that is over."""
        self.transport.close()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout_seconds, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
