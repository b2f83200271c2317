"""One request and its answer, between a connection and the application."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import ServiceError
from service.http.endpoint import Headers
from service.logs import named_request
from service.server.closing import refusal


class Cycle(RequestResponseCycle):
    """As uvicorn's, but it ends when its client leaves. ``lingers``: the connection closes after the answer, and the
    body may still arrive."""

    task: asyncio.Task[None]
    lingers = False

    def __init__(self, connection: HttpToolsProtocol, version: str) -> None:
        """Of the request whose head the connection has just read."""
        super().__init__(
            scope=connection.scope,
            transport=connection.transport,
            flow=connection.flow,
            logger=connection.logger,
            access_logger=connection.access_logger,
            access_log=connection.access_log,
            default_headers=connection.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=connection.expect_100_continue and version != "1.0",  # RFC 9110, 10.1.1
            keep_alive=connection.parser.should_keep_alive() and version != "1.0",
            on_response=connection.on_response_complete,
        )

    def abandon(self) -> None:
        """End the request: the client is gone, or the connection answers it."""
        self.disconnected = True
        self.task.cancel()

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                self._fail("The application did not complete its answer.")
        except asyncio.CancelledError:  # By abandon(), or by the server at the end of the time of grace.
            if not self.disconnected:
                self.transport.abort()
        except Exception:
            self._fail("Exception in the application", exc_info=True)
        finally:
            self.on_response = lambda: None
            self.scope.pop("respond", None)  # type: ignore[typeddict-item]  # breaks a reference cycle

    def _fail(self, message: str, exc_info: bool = False) -> None:
        identifier = named_request().text
        self.logger.error(message, exc_info=exc_info)
        if self.response_started or self.disconnected:
            self.transport.abort()  # The client must see that the answer is incomplete.
            return
        target, is_head = self.scope["raw_path"], self.scope["method"] == "HEAD"
        self.transport.write(refusal(ServiceError(), target, self.default_headers, is_head, identifier))
        self.response_started = self.response_complete = self.lingers = True
        self.on_response()

    def respond(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send the whole answer in one write. The caller vouches for the headers. False where ``send`` must be used."""
        if self.more_body or not self.keep_alive or self.disconnected or self.flow.write_paused or self._is_draining:
            return False
        fields = b"".join([b"%b: %b\r\n" % field for field in (*self.default_headers, *headers)])
        self.transport.write(STATUS_LINE[status] + fields + b"\r\n" + (b"" if self.scope["method"] == "HEAD" else body))
        self.response_started = self.response_complete = True
        self.on_response()
        return True

    @property
    def _is_draining(self) -> bool:
        return bool(getattr(self.scope["state"].get("runtime"), "draining", False))

    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        return super().send(message) if self.response_started else self._begin(message)

    async def _begin(self, message: ASGISendEvent) -> None:
        if self.more_body:
            self.lingers = True
            self.keep_alive = False  # Writes "Connection: close" ...
            await super().send(message)
            self.keep_alive = True  # ... and leaves the closing to on_response_complete.
            return
        if self._is_draining:
            self.keep_alive = False
        await super().send(message)

    async def receive(self) -> ASGIReceiveEvent:
        """As uvicorn's, but 64 KiB at most at a time, so that a reader that counts can stop early."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not (self.body or self.disconnected or self.response_complete):
            self.flow.resume_reading()
            await self.message_event.wait()
        self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = bytes(self.body[:HIGH_WATER_LIMIT])
        del self.body[:HIGH_WATER_LIMIT]
        return {"type": "http.request", "body": body, "more_body": self.more_body or bool(self.body)}
