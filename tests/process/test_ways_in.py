"""The same service by other ways in than ``python -m service``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from service import __main__ as main
from tests.process.test_service import QUESTION, printed
from tests.support.client import fetch
from tests.support.probe import environment
from tests.support.process import PATIENCE, Process, eventually, free_port, is_running
from tests.support.server import Server

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "service" / "server" / "gunicorn.py"


@pytest.mark.anyio
async def test_gunicorn_with_our_configuration_is_the_whole_service(tmp_path: Path, iris_models: Path) -> None:
    command = ("-m", "gunicorn", "-c", str(CONFIGURATION), "service.app:app")
    server = Server(tmp_path, command=command, workers=2, models_dir=iris_models, redis_url="embedded")
    try:
        server.wait_until_ready()
        eventually(lambda: printed(server) == f"Serving on {server.url} (2 workers, Redis: embedded)\n")
        assert (await fetch(server.address, QUESTION)).status == 200
        assert (await fetch(server.address, QUESTION)).hit
        family = server.family()
        assert server.stop() == 0
        eventually(lambda: not any(is_running(pid) for pid in family))
    finally:
        server.kill()


@pytest.mark.anyio
async def test_gunicorn_with_our_configuration_fails_to_start_in_one_sentence_too(tmp_path: Path) -> None:
    command = ("-m", "gunicorn", "-c", str(CONFIGURATION), "service.app:app")
    server = Server(tmp_path, command=command, prot=80)
    assert server.process.wait(PATIENCE) == 2
    assert len(server.process.errors().splitlines()) == 1
    assert "PREDICT_PORT" in server.process.errors()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


OTHERS = {
    "uvicorn": "-m uvicorn service.app:app --port={port}",
    "uvicorn --workers": "-m uvicorn service.app:app --workers 2 --port={port}",
    "uvicorn --reload": "-m uvicorn service.app:app --reload --port={port}",
    "gunicorn -k": "-m gunicorn -k uvicorn_worker.UvicornWorker service.app:app -w 2 -b 127.0.0.1:{port}",
}
"""As articles have them."""


@pytest.mark.anyio
@pytest.mark.parametrize("command", OTHERS.values(), ids=OTHERS)
async def test_what_articles_start_fastapi_with_serves_the_application(
    tmp_path: Path, iris_models: Path, command: str
) -> None:
    port = free_port()
    env = environment({"models_dir": iris_models, "audit_share": 0})
    process = Process([sys.executable, *command.format(port=port).split()], tmp_path / "log", env=env, cwd=tmp_path)
    try:
        eventually(lambda: accepts(port), within=PATIENCE)
        hits = []
        while hits.count(True) < 2:  # of two workers, who share no cache
            answer = await fetch(("127.0.0.1", port), QUESTION)
            assert answer.status == 200
            hits.append(answer.hit)
        assert hits[0] is False
        process.terminate()
        process.wait(PATIENCE)
        assert "Traceback" not in process.errors()
    finally:
        process.kill()


def test_to_import_the_application_reads_no_setting_and_starts_no_thread() -> None:
    program = "import threading, service.app; print(threading.active_count())"
    environ = {**os.environ, "PREDICT_PROT": "80"}
    assert subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT, env=environ) == "1\n"


def test_the_installed_command_is_the_same_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((_, target),) = project["scripts"].items()
    module, _, function = target.partition(":")
    assert getattr(import_module(module), function) is main.main


def test_without_room_for_another_process_the_service_goes_on_and_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fork() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    arbiter = object.__new__(main.PatientArbiter)
    monkeypatch.setattr(main.Arbiter, "spawn_worker", lambda self: fork())
    arbiter.spawn_worker()
    assert "No worker can be started: Resource temporarily unavailable" in caplog.text
