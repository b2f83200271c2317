"""``make load``: Locust, headless, at 1,000 requests a second for a minute, against a service of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import CLIENT_CORE, SERVER_CORE, pin
from benchmarks.ours import ROOT, serving
from benchmarks.processes import StartFailed, private_redis

LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """Locust's exit code: 0 when everything was as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_test", description=__doc__)
    parser.add_argument("--users", type=int, default=100, help="each asks ten times a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--ui", action="store_true", help="Locust's own page, on port 8089")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            redis = stack.enter_context(private_redis())
            service = stack.enter_context(serving(redis=redis, cores=SERVER_CORE))
            url = "http://{}:{}".format(*service.address)
            return _locust(url, options.users, None if options.ui else options.seconds)
    except StartFailed as error:
        print(f"not run: {error}")
        return 2


def _locust(url: str, users: int, seconds: int | None) -> int:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", url, "--users", str(users)]
    command += ["--spawn-rate", str(users), "--autostart" if seconds is None else "--headless", "--only-summary"]
    command += [] if seconds is None else ["--run-time", f"{seconds}s", "--reset-stats"]
    return subprocess.run(command, cwd=ROOT, preexec_fn=lambda: pin(CLIENT_CORE), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
