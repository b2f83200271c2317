"""deploy/nginx in front of two replicas: nothing is lost when one of them stops, and HTTP stays what it was."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.client import Address, fetch
from tests.support.process import PATIENCE, Process, eventually, free_port
from tests.support.redis_server import RedisServer
from tests.support.server import ADMIN_TOKEN, Server, running_server

pytestmark = [pytest.mark.deploy, pytest.mark.anyio]

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"
TARGET = "/predict?sepal_length={}&sepal_width=3.5&petal_length=1.4&petal_width=0.2"


@contextmanager
def nginx(binary: str, directory: Path, replicas: list[Server], *, caching: bool = False) -> Iterator[Address]:
    """The shipped configuration, with nothing changed but addresses, places of files, and the option."""
    port, text = free_port(), CONFIG.read_text()
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"replica-{number}:8000", f"127.0.0.1:{replica.port}")
    text = text.replace("/tmp/", f"{directory}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
    text = text.replace("/dev/stdout", f"{directory}/access").replace("/dev/stderr", f"{directory}/error")
    if caching:
        text = re.sub(r"# (proxy_cache)", r"\1", text)
    user = "user root;" if os.geteuid() == 0 else ""  # pytest's directories are open to their owner only
    (directory / "nginx.conf").write_text(f"daemon off;\n{user}\n{text}")
    process = Process([binary, "-p", str(directory), "-c", str(directory / "nginx.conf")], directory / "log")
    try:
        eventually(lambda: answers(("127.0.0.1", port)), within=PATIENCE)
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def answers(address: Address) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


class Load:
    """Clients that ask one question after the other, in threads of their own, each on kept-alive connections."""

    def __init__(self, address: Address, clients: int = 8) -> None:
        self.statuses: Counter[int] = Counter()
        self.longest = 0.0
        self._address, self._stop = address, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE)
        asked = 0
        while not self._stop.is_set():
            started = time.monotonic()
            connection.request("GET", TARGET.format(4 + (asked % 10) / 10 + number / 1000))
            response = connection.getresponse()
            response.read()
            self.statuses[response.status] += 1
            self.longest = max(self.longest, time.monotonic() - started)
            asked += 1
        connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_rolling_restart_under_load_loses_nothing(
    iris_models: Path, tmp_path: Path, program: Callable[[str], str], redis_server: RedisServer
) -> None:
    def start(port: int = 0) -> Server:
        given = {"models_dir": iris_models, "redis_url": redis_server.url, "drain_seconds": 1}
        server = Server(tmp_path, **given, **({"port": port} if port else {}))
        server.wait_until_ready()
        return server

    replicas = [start(), start()]
    try:
        with nginx(program("nginx"), tmp_path, replicas) as address, Load(address) as load:
            for number, replica in enumerate(replicas):
                assert replica.stop() == 0
                replicas[number] = again = start(replica.port)
                eventually(
                    lambda again=again: again.metric("predict_requests_total", route="/predict"), within=PATIENCE
                )
        assert set(load.statuses) == {200}
    finally:
        for replica in replicas:
            replica.kill()


async def test_conditions_directives_and_ages_pass_through(
    iris_models: Path, tmp_path: Path, program: Callable[[str], str]
) -> None:
    with running_server(tmp_path, models_dir=iris_models) as service, ExitStack() as stack:
        address = stack.enter_context(nginx(program("nginx"), tmp_path, [service, service]))
        await fetch(address, TARGET.format(5.1))
        hit = await fetch(address, TARGET.format(5.1))
        assert hit.hit and hit.max_age > 0
        assert (await fetch(address, TARGET.format(5.1), headers={"If-None-Match": hit.headers["etag"]})).status == 304
        for directive, how in (("no-cache", "request"), ("max-age=0", "request"), ("no-store", "request")):
            fresh = await fetch(address, TARGET.format(5.1), headers={"Cache-Control": directive})
            assert fresh.cache["fwd"] == how
        assert (await fetch(address, TARGET.format(7.7), headers={"Cache-Control": "only-if-cached"})).status == 504
        body = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}'
        asked = await fetch(address, "/predict", "QUERY", {"Content-Type": "application/json"}, body)
        assert (asked.hit, asked.body, asked.headers["etag"]) == (True, hit.body, hit.headers["etag"])
        assert (await fetch(address, "/predict", "OPTIONS")).headers["accept-query"]
        for path in ("/metrics", "/admin/cache/stats"):
            assert (await fetch(address, path)).status == 404


def said_to(address: Address, request: bytes) -> bytes:
    """Everything until the connection is closed."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(4096), b""))


async def test_strangers_are_met_by_nginx(iris_models: Path, tmp_path: Path, program: Callable[[str], str]) -> None:
    post = b"POST /predict_batch HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n["
    with running_server(tmp_path, models_dir=iris_models) as service, ExitStack() as stack:
        address = stack.enter_context(nginx(program("nginx"), tmp_path, [service, service]))
        for request, status in (
            (post % (33 * 2**20), b" 413 "),
            (b"GET /%b HTTP/1.1\r\nHost: here\r\n\r\n" % (b"x" * 70_000), b" 414 "),
            (b"GET /predict HTTP/1.1\r\nHost: ", b""),  # a head that never ends: the connection is closed
            (post % 1000, b""),  # a body that never ends
        ):
            answer = (await asyncio.to_thread(said_to, address, request)).partition(b"\r\n")[0]
            assert (status in answer) if status else not answer, answer
        assert service.metric("predict_requests_total", route="/predict_batch") == 0


async def test_a_purge_reaches_whoever_nginx_keeps_an_answer_for(
    iris_models: Path, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """With proxy_cache: once its copy is stale, the entity tag of the generation before matches no more."""
    with running_server(tmp_path, models_dir=iris_models, ttl_seconds=2) as service, ExitStack() as stack:
        address = stack.enter_context(nginx(program("nginx"), tmp_path, [service, service], caching=True))
        first = await fetch(address, TARGET.format(5.1))
        asked = service.metric("predict_requests_total", route="/predict")
        assert (await fetch(address, TARGET.format(5.1))).body == first.body
        assert service.metric("predict_requests_total", route="/predict") == asked
        token = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
        purged = await fetch(service.address, "/admin/purge", "POST", token, b'{"model":"iris"}')
        assert purged.status == 200
        await asyncio.sleep(first.max_age + 1)
        again = await fetch(address, TARGET.format(5.1))
        assert again.status == 200 and again.headers["etag"] != first.headers["etag"]
