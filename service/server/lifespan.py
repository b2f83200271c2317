"""The server's side of the application's lifespan, and the hit table that lives as long."""

from __future__ import annotations

import asyncio
from typing import Any

from service.runtime import Runtime
from service.server.hit_table import HitTable


class Lifespan:
    """The application's lifespan as ASGI events. It raises the application's errors; uvicorn's own only logs them."""

    should_exit = False

    def __init__(self, app: Any) -> None:
        self.state: dict[str, Any] = {}
        self._events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._app = app
        self._running: asyncio.Task[None]

    async def startup(self) -> None:
        """Raises what the application raised while it started. Makes the hit table before there are connections."""
        self._running = asyncio.create_task(self._app(self._scope, self._events.get, self._replies.put))
        await self._send("lifespan.startup")
        runtime: Runtime = self.state["runtime"]
        if runtime.settings.has_hit_path:
            hits = self.state["hits"] = HitTable(runtime)
            runtime.tallies.append(hits.flush)

    async def shutdown(self) -> None:
        await self._send("lifespan.shutdown")
        await self._running

    async def _send(self, event: str) -> None:
        self._events.put_nowait({"type": event})
        reply = asyncio.create_task(self._replies.get())
        await asyncio.wait((reply, self._running), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done() or not reply.result()["type"].endswith(".complete"):
            reply.cancel()
            await self._running
