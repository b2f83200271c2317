"""The whole service as processes: how it starts, what happens when one of them dies, and what is left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import fetch
from tests.support.process import PATIENCE, command_line, descendants, eventually, is_running
from tests.support.redis_server import running_redis
from tests.support.server import Server, close_all, running_server

QUESTION = "/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
Launch = Callable[..., Server]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the services of one test make their temporary directories."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@pytest.fixture
def launch(tmp_path: Path, scratch: Path, iris_models: Path) -> Iterator[Launch]:
    """``launch(**settings)``: a started service, not waited for; at the end none of its processes is left."""
    servers: list[Server] = []

    def start(**settings: object) -> Server:
        servers.append(Server(tmp_path, **{"models_dir": iris_models, "redis_url": "embedded", **settings}))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Path:
    copy = tmp_path_factory.mktemp("shared") / "models"
    shutil.copytree(iris_models, copy)
    return copy


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[Server]:
    """Two workers and their Redis, which every test that kills one of them gives time to recover."""
    with running_server(models.parent, workers=2, redis_url="embedded", models_dir=models) as server:
        yield server


def redis_pid(server: Server) -> int | None:
    running = [pid for pid in descendants(server.process.pid) if "redis.sock" in command_line(pid)]
    return running[0] if running else None


def assert_gone(family: list[int], scratch: Path) -> None:
    """No process is left, nor a temporary directory, within a moment."""
    eventually(lambda: not any(is_running(pid) for pid in family))
    eventually(lambda: not any(scratch.iterdir()))


def cache_state(server: Server) -> object:
    """What /readyz says of the cache, as one of the workers sees it."""
    with urllib.request.urlopen(server.url + "/readyz", timeout=30) as response:
        return json.load(response)["cache"]


def whole_again(server: Server, killed: int) -> None:
    """Wait until as many workers as wanted serve, without the one that was killed."""

    def is_whole() -> bool:
        workers = set(server.workers()) - {killed}
        return len(workers) == server.workers_wanted and workers <= server.serving()

    eventually(is_whole, within=2 * PATIENCE)


def printed(server: Server) -> str:
    """Its standard output."""
    return server.process.log.with_suffix(".out").read_text()


# Start


@pytest.mark.anyio
async def test_it_says_where_it_serves_and_every_worker_answers_from_one_redis(shared: Server) -> None:
    announced = f"Serving on {shared.url} (2 workers, Redis: embedded)\n"
    eventually(lambda: printed(shared) == announced)
    await fetch(shared.address, QUESTION)
    for connections in (await shared.connect_to_each()).values():
        async with connections[0] as connection:
            assert (await connection.get(QUESTION)).hit


def test_a_model_that_cannot_be_loaded_stops_the_start_with_one_sentence(
    launch: Launch, scratch: Path, tmp_path: Path, iris_models: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(iris_models, broken)
    manifest = broken / "iris" / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    server = launch(models_dir=broken, workers=2)
    assert server.process.wait(PATIENCE) == 2
    assert str(manifest) in server.process.errors()
    assert len(server.process.errors().splitlines()) == 1
    assert_gone([], scratch)


def test_a_model_that_cannot_be_loaded_leaves_the_others_served_unless_all_are_required(
    launch: Launch, tmp_path: Path, iris_models: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(iris_models / "iris", models / "iris")
    shutil.copytree(iris_models / "iris", models / "broken")
    weights = next(path for path in (models / "broken").iterdir() if path.suffix == ".joblib")
    weights.write_bytes(weights.read_bytes()[:50])
    manifest = models / "broken" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "iris"', '"name": "broken"'))
    server = launch(models_dir=models, workers=1)
    server.wait_until_ready()
    with urllib.request.urlopen(server.url + "/models", timeout=30) as response:
        listed = json.load(response)
    assert [model["name"] for model in listed["models"]] == ["iris"]
    assert [model["name"] for model in listed["failed"]] == ["broken"]
    assert str(weights) in listed["failed"][0]["reason"]
    assert "A model is not served." in server.process.errors()
    assert server.status(QUESTION) == 200
    strict = launch(models_dir=models, workers=1, require_models="all")
    assert strict.process.wait(PATIENCE) == 2


def test_a_port_that_is_taken_stops_the_start_with_one_sentence(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = launch(port=other.getsockname()[1])
        assert server.process.wait(PATIENCE) == 2
    assert "PREDICT_PORT" in server.process.errors()
    assert len(server.process.errors().splitlines()) == 1


def test_an_unknown_setting_stops_the_start_with_one_sentence(launch: Launch) -> None:
    server = launch(prot=80)
    assert server.process.wait(PATIENCE) == 2
    assert "PREDICT_PORT" in server.process.errors()
    assert len(server.process.errors().splitlines()) == 1


def test_a_redis_cluster_stops_the_start_with_one_sentence(launch: Launch, scratch: Path, tmp_path: Path) -> None:
    with running_redis(tmp_path / "cluster", "--cluster-enabled", "yes") as node:
        server = launch(redis_url=node.url, cache_secret="of-our-own", workers=2)
        assert server.process.wait(PATIENCE) == 2
    assert "Redis Cluster" in server.process.errors()
    assert len(server.process.errors().splitlines()) == 1
    assert_gone([], scratch)


def test_imports_are_shared_by_all_workers_but_no_thread_and_nothing_that_starts_one(shared: Server) -> None:
    arbiter = Path(f"/proc/{shared.process.pid}")
    assert "sklearn" in (arbiter / "maps").read_text()
    assert len(list((arbiter / "task").iterdir())) == 1


def test_what_is_shared_before_the_fork_is_never_torch_nor_openvino(tmp_path: Path) -> None:
    for kind in ("tabular", "vision"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "manifest.json").write_text(json.dumps({"kind": kind}))
    (tmp_path / "tabular" / "manifest.previous.json").write_text("{")
    program = f"""
import sys, service.inference.loading
from pathlib import Path
service.inference.loading.import_kinds(Path({str(tmp_path)!r}))
print([name for name in ("sklearn", "PIL", "torch", "openvino") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "['sklearn', 'PIL']\n"


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """For processes started meanwhile: as a full disk, to whoever takes the space for a longer one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.anyio
async def test_without_space_for_their_metrics_workers_serve_each_with_its_own_and_the_log_says_why(
    tmp_path: Path, iris_models: Path
) -> None:
    with contextlib.ExitStack() as stack:
        with no_file_longer_than(64 * 2**10):
            server = stack.enter_context(running_server(tmp_path / "server", workers=2, models_dir=iris_models))
        for connections in (await server.connect_to_each()).values():
            async with connections[0] as connection:
                for _ in range(3):
                    assert (await connection.get(QUESTION)).status == 200
                shown = (await connection.get("/metrics")).body.decode()
                assert 'predict_requests_total{route="/predict",status="200"} 3.0' in shown
                assert "predict_l2_up" not in shown  # without Redis nothing may say that it is away
        assert server.process.errors().count("No space for the metrics of all workers") == 2


# Death


@pytest.mark.anyio
async def test_a_worker_that_is_killed_is_replaced_while_the_others_serve(shared: Server) -> None:
    connections = {pid: found[0] for pid, found in (await shared.connect_to_each()).items()}
    victim, survivor = connections
    os.kill(victim, signal.SIGKILL)
    assert (await connections[survivor].get(QUESTION)).status == 200
    whole_again(shared, victim)
    close_all(connections.values())


@pytest.mark.anyio
async def test_a_worker_that_cannot_start_again_stops_nobody_and_is_tried_for_ever(
    shared: Server, models: Path
) -> None:
    seen = len(shared.process.errors())
    os.rename(models, away := models.with_name("away"))
    victim = shared.workers()[0]
    os.kill(victim, signal.SIGKILL)
    try:
        eventually(lambda: shared.process.errors()[seen:].count("is replaced") >= 3, within=2 * PATIENCE)
        assert (await fetch(shared.address, QUESTION)).status == 200
    finally:
        os.rename(away, models)
    whole_again(shared, victim)
    assert str(models) in shared.process.errors()[seen:]  # It says why.


def test_when_no_worker_can_start_any_more_the_service_ends_with_a_sentence(
    launch: Launch, scratch: Path, tmp_path: Path, iris_models: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(iris_models, models)
    server = launch(models_dir=models, workers=1)
    server.wait_until_ready()
    shutil.rmtree(models)
    os.kill(server.workers()[0], signal.SIGKILL)
    assert server.process.wait(2 * PATIENCE) == 2
    sentence = server.process.errors().splitlines()[-1]
    assert sentence.startswith("No worker can start any more.")
    assert str(models) in sentence
    assert_gone([], scratch)


@pytest.mark.faults
def test_a_worker_that_hangs_is_replaced(launch: Launch) -> None:
    server = launch(workers=1)
    server.wait_until_ready()
    (hanging,) = server.workers()
    os.kill(hanging, signal.SIGSTOP)
    whole_again(server, hanging)


@pytest.mark.anyio
async def test_a_redis_that_is_killed_is_started_again_at_the_same_address(shared: Server) -> None:
    killed = redis_pid(shared)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert (await fetch(shared.address, QUESTION)).status == 200
    eventually(lambda: redis_pid(shared) not in (None, killed))
    eventually(lambda: cache_state(shared) == "up")


@pytest.mark.anyio
async def test_when_who_keeps_the_redis_is_killed_one_line_says_so_and_answers_go_on(
    launch: Launch, scratch: Path
) -> None:
    server = launch(workers=1)
    server.wait_until_ready()
    (keeper,) = [pid for pid in server.family() if "server.embedded_redis" in command_line(pid)]
    os.kill(keeper, signal.SIGKILL)
    eventually(lambda: "keeps the embedded Redis ended" in server.process.errors())
    assert (await fetch(server.address, QUESTION)).status == 200
    assert server.stop() == 0
    assert server.process.errors().count("keeps the embedded Redis ended") == 1
    assert_gone([], scratch)


def test_an_arbiter_that_is_killed_leaves_nothing_behind(launch: Launch, scratch: Path) -> None:
    server = launch(workers=1)
    server.wait_until_ready()
    family = server.family()
    assert len(family) == 4  # The arbiter, a worker, Redis, and the process that keeps it until all of them have ended.
    server.process.kill()
    assert_gone(family, scratch)


def test_an_arbiter_that_is_killed_while_it_starts_leaves_nothing_behind(launch: Launch, scratch: Path) -> None:
    server = launch(workers=1)
    eventually(lambda: redis_pid(server) and len(server.family()) == 4)
    family = server.family()
    server.process.kill()
    assert_gone(family, scratch)


# Stop


@pytest.mark.anyio
async def test_told_to_stop_it_is_unready_at_once_serves_on_and_ends_with_0(launch: Launch, scratch: Path) -> None:
    drain = 4
    server = launch(workers=2, drain_seconds=drain)
    server.wait_until_ready()
    family = server.family()
    pairs = list((await server.connect_to_each(count=2)).values())
    for connection in (connection for pair in pairs for connection in pair):
        assert "connection" not in (await connection.get(QUESTION)).headers
    server.process.terminate()
    eventually(lambda: server.status("/readyz") == 503, within=drain / 2)
    for asking, idle in pairs:
        # The arbiter tells one worker after the other: this one may not have heard yet.
        async with asyncio.timeout(drain / 2):
            while "connection" not in (answer := await asking.get(QUESTION)).headers:
                assert answer.status == 200
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert not idle.reader.at_eof()
    assert server.process.wait(PATIENCE) == 0
    for _, idle in pairs:
        assert await idle.is_closed(PATIENCE)
    assert_gone(family, scratch)
    assert all("level" in json.loads(line) for line in server.process.errors().splitlines())


def test_told_to_stop_while_it_starts_it_ends_with_0(launch: Launch, scratch: Path) -> None:
    server = launch(workers=2)
    eventually(lambda: redis_pid(server) and len(server.family()) == 5)
    family = server.family()
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    assert_gone(family, scratch)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_before_there_is_a_worker_it_ends_with_0_as_well(
    launch: Launch, scratch: Path, signum: signal.Signals
) -> None:
    server = launch(workers=1)
    eventually(lambda: any(scratch.iterdir()))  # what is imported meanwhile takes longer
    os.kill(server.process.pid, signum)
    assert server.process.wait(PATIENCE) == 0
    assert server.process.errors() == ""
    assert_gone([], scratch)


def test_told_a_second_time_it_stops_without_waiting(launch: Launch, scratch: Path) -> None:
    server = launch(workers=1, drain_seconds=60)
    server.wait_until_ready()
    family = server.family()
    server.process.terminate()
    eventually(lambda: server.status("/readyz") == 503, within=30)

    def ended_by_another() -> bool:
        os.kill(server.process.pid, signal.SIGINT)
        return server.process.exit_code is not None

    eventually(ended_by_another, within=30)
    assert server.process.exit_code == 1
    assert_gone(family, scratch)
