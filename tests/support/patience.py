"""Redis with time to spare, for every test that is not about how long Redis may take.

Past its deadline Redis counts as gone, and each worker computes for itself: as promised, and not what a test wants that
counts computations on a machine where Redis has to wait for a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

from service.cache.redis import auto_pipeline as joined
from service.cache.redis import client as client

FACTOR = 10


def give_redis_time(put: Callable[[object, str, float], None] = setattr) -> None:
    """Ten times the time in this process; ``put`` may be one that a fixture takes back."""
    for name in ("ROUND_TRIP_SECONDS", "SHORTEST_SECONDS", "LONGEST_SECONDS", "ALLOWANCE_SECONDS"):
        put(joined, name, FACTOR * getattr(joined, name))
    for name in ("CONNECT_SECONDS", "PING_SECONDS"):
        put(client, name, FACTOR * getattr(client, name))
