"""What the cache tells about itself; whoever runs it turns that into metrics."""

from __future__ import annotations

from typing import Literal, Protocol

Trip = Literal["command", "ping"]


class Observer(Protocol):
    """Every method is called on the event loop and must return at once."""

    def round_trip(self, kind: Trip, seconds: float, ok: bool) -> None:
        """One round trip to Redis has ended."""

    def corrupt(self) -> None:
        """A value in Redis was not what this service wrote there. It was taken for a miss."""


class Silent:
    """An observer that tells nobody."""

    def round_trip(self, kind: Trip, seconds: float, ok: bool) -> None: ...

    def corrupt(self) -> None: ...
