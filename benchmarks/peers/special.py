"""What no load generator shows: computations behind identical requests, time until ready, memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from statistics import median

from tqdm import tqdm

from benchmarks.client import burst, get
from benchmarks.inputs import iris_targets
from benchmarks.machine import resident_mib
from benchmarks.ours import serving
from benchmarks.peers.contestant import Model, alone
from benchmarks.processes import StartFailed, private_redis

IDENTICAL = 1000
IMPORTS = "import fastapi, uvicorn, redis, sklearn.ensemble"
"""What a service of this kind cannot do without; its time and memory are the floor."""
_BARE = IMPORTS + "; print(open('/proc/self/statm').read().split()[1])"


def measure(model: Model, rounds: int) -> dict[str, object]:
    """All of it, or the reason why not under ``not_run``."""
    try:
        return {"identical": identical(model), "start": start(model, rounds)}
    except (StartFailed, OSError) as error:
        return {"not_run": str(error)}


def identical(model: Model) -> dict[str, object]:
    """A thousand connections ask the same never-seen question at once."""
    with private_redis() as redis, alone(model) as models, serving(redis=redis, models=models) as service:
        before = service.computations()
        replies, seconds = burst(service.address, get(next(iris_targets(random.Random()))), IDENTICAL)
        outcomes = [reply.outcome for reply in replies]
        return {
            "requests": IDENTICAL,
            "computations": service.computations() - before,
            "answered": sum(reply.status == 200 for reply in replies),
            "bodies": len({reply.body for reply in replies}),
            "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
            "seconds": seconds,
        }


def start(model: Model, rounds: int) -> dict[str, object]:
    """From spawning to ready, and resident memory, in turns with the bare imports."""
    ready, bare, memory, bare_memory = [], [], [], []
    for _ in tqdm(range(max(3, rounds)), "start", unit=" rounds"):
        began = time.perf_counter()
        with alone(model) as models, serving(models=models) as service:
            ready.append(time.perf_counter() - began)
            memory.append(max(resident_mib(service.pid).values()))
        seconds, mib = _bare_imports()
        bare.append(seconds)
        bare_memory.append(mib)
    return {
        "ready_seconds": median(ready),
        "bare_imports_seconds": median(bare),
        "ratio": median(a / b for a, b in zip(ready, bare, strict=True)),
        "worker_resident_mib": median(memory),
        "bare_imports_resident_mib": median(bare_memory),
    }


def _bare_imports() -> tuple[float, float]:
    """Seconds until the imports are done in a new process, and its resident memory in MiB."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", _BARE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pages = int(process.stdout.readline())
        seconds = time.perf_counter() - began
    return seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
