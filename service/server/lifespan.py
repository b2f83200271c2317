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
        self._app = app
        self._events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._replied = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises what the application raised while it started."""
        self._task = asyncio.create_task(self._run())
        await self._put("lifespan.startup")
        if self._task.done():
            self._task.result()
        self._open_hit_path(self.state["runtime"])

    def _open_hit_path(self, runtime: Runtime) -> None:
        """Make the hit table before the first connection is accepted."""
        if runtime.settings.has_hit_path:
            hits = self.state["hits"] = HitTable(runtime)
            runtime.tallies.append(hits.flush)

    async def shutdown(self) -> None:
        await self._put("lifespan.shutdown")
        if self._task is not None:
            await self._task

    async def _put(self, event: str) -> None:
        self._replied.clear()
        self._events.put_nowait({"type": event})
        await self._replied.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._events.get, self._send)
        finally:
            self._replied.set()

    async def _send(self, message: dict[str, Any]) -> None:
        # After "failed" the application raises its error at once. Then `_run` ends and sets the event.
        if not message["type"].endswith(".failed"):
            self._replied.set()
