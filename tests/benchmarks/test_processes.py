"""What is started is stopped, and what does not start says why."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.client import Connection, get
from benchmarks.machine import SERVER_CORE, resident_mib
from benchmarks.processes import StartFailed, free_port, running

SERVE = """
import sys
from http.server import SimpleHTTPRequestHandler, test
test(SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'print(flush=True); input()'], stdin=-1, stdout=-1)
child.stdout.readline()  # it runs, and has taken its memory
{SERVE}"""


def test_a_server_answers_inside_the_block_and_is_gone_after_it_with_its_children() -> None:
    address = ("127.0.0.1", free_port())
    with running([sys.executable, "-c", WITH_CHILD, str(address[1])], address=address) as process:
        with Connection(address) as connection:
            assert connection.ask(get("/")).status == 200
        family = resident_mib(process.pid)
        assert len(family) == 2 and all(mib > 1 for mib in family.values())
    assert all(_gone(pid) for pid in family)


def test_a_server_runs_on_its_cores() -> None:
    address = ("127.0.0.1", free_port())
    with running([sys.executable, "-c", SERVE, str(address[1])], address=address, cores=SERVER_CORE) as process:
        assert os.sched_getaffinity(process.pid) == set(SERVER_CORE)


def test_settings_of_the_caller_do_not_reach_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREDICT_WORKERS", "7")
    found = tmp_path / "environment"
    code = f"import os; open({str(found)!r}, 'w').write('\\n'.join(os.environ))"
    _fails([sys.executable, "-c", code], "ended with 0", env={"PREDICT_TTL_SECONDS": "9"})
    assert {name for name in found.read_text().splitlines() if name.startswith("PREDICT_")} == {"PREDICT_TTL_SECONDS"}


def test_a_server_that_ends_is_reported_with_its_last_words() -> None:
    _fails([sys.executable, "-c", "import sys; sys.exit('no such model')"], "ended with 1: no such model")


def test_a_server_that_never_answers_is_reported() -> None:
    _fails([sys.executable, "-c", "import time; time.sleep(60)"], "did not answer within", timeout=0.2)


def _fails(command: list[str], reason: str, *, env: dict[str, str] | None = None, timeout: float = 60) -> None:
    address = ("127.0.0.1", free_port())
    with pytest.raises(StartFailed, match=reason), running(command, address=address, env=env, timeout=timeout):
        pass


def _gone(pid: int, within: float = 60) -> bool:
    """Whether it no longer runs; one that waits to be reaped by its new parent counts as gone."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False
