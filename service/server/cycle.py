"""One request and its answer, between a connection and the application."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import orjson
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.errors import ServiceError
from service.http.endpoint import Headers, describe
from service.logs import named_request


class Cycle(RequestResponseCycle):
    """As uvicorn's, but it ends when its client leaves. ``lingers``: the body still arrived when the answer began."""

    task: asyncio.Task[None]
    lingers = False

    def abandon(self) -> None:
        """End the request: the client is gone, or the connection answers it."""
        self.disconnected = True
        self.task.cancel()

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                await self._fail("The application did not complete its answer.")
        except asyncio.CancelledError:  # By abandon(), or by the server at the end of the time of grace.
            if not self.disconnected:
                self.transport.abort()
        except Exception:
            await self._fail("Exception in the application", exc_info=True)
        finally:
            self.on_response = _ignore
            self.scope.pop("respond", None)  # type: ignore[typeddict-item]  # breaks a reference cycle

    async def _fail(self, message: str, exc_info: bool = False) -> None:
        identifier = named_request().text
        self.logger.error(message, exc_info=exc_info)
        if self.response_started:
            self.transport.abort()  # The client must see that the answer is incomplete.
            return
        body = orjson.dumps(describe(ServiceError()))
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", identifier.encode()),
        ]
        await self.send({"type": "http.response.start", "status": ServiceError.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

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


def _ignore() -> None:
    pass
