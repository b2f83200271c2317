"""``make demo``: the same question twice, ten times with the cache and without, and what Redis then holds."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import redis
import requests

from benchmarks import inputs
from benchmarks.ours import MODELS, serving
from benchmarks.processes import StartFailed

REPEATS = 10
NO_STORE = {"Cache-Control": "no-store"}


class Asked(NamedTuple):
    """A reply and the milliseconds that the client waited for it."""

    reply: requests.Response
    ms: float


class Client:
    """Python's ``requests``, with one connection that stays open."""

    def __init__(self, url: str) -> None:
        self._url, self._session = url, requests.Session()
        self._session.get(f"{url}/livez").raise_for_status()

    def ask(self, target: str, **headers: str) -> Asked:
        started = time.perf_counter()
        reply = self._session.get(self._url + target, headers=headers)
        ms = (time.perf_counter() - started) * 1000
        reply.raise_for_status()
        return Asked(reply, ms)

    def models(self) -> list[str]:
        return [model["name"] for model in self._session.get(f"{self._url}/models").json()["models"]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _arguments(arguments)
    try:
        if options.url:
            show(Client(options.url), options.redis)
        else:
            with _own_service(options.models) as (url, redis_url):
                show(Client(url), redis_url)
    except (StartFailed, requests.RequestException, redis.RedisError) as error:
        print(f"not shown: {error}")
        return 1
    return 0


def show(client: Client, redis_url: str) -> None:
    twice(client)
    chance = random.Random()
    targets = {"iris": inputs.iris_targets(chance), "digits": inputs.digit_targets(chance)}
    for model in client.models():
        if model in targets:
            ten_times(client, model, targets[model])
    if redis_url:
        keys(redis_url)
    else:
        print("\nThe keys in Redis: name it with --redis.")


def twice(client: Client) -> None:
    target = inputs.iris_target(inputs.HOT_IRIS)
    print(f"The same four measurements, twice: GET {target}\n")
    for _ in range(2):
        reply, ms = client.ask(target)
        print(f"  {reply.json()['label']:<12} {ms:7.2f} ms   Cache-Status: {reply.headers['Cache-Status']}")


def ten_times(client: Client, model: str, targets: Iterator[str]) -> None:
    """Each time with an input that nobody has sent before."""
    print(f"\n{REPEATS} identical requests to {model}:\n")
    for name, headers in (("without the cache", NO_STORE), ("with it", {})):
        target = next(targets)
        asked = [client.ask(target, **headers) for _ in range(REPEATS)]
        hits = sum("hit" in each.reply.headers["Cache-Status"] for each in asked)
        print(f"  {name:<18} {sum(each.ms for each in asked):7.1f} ms   {hits} of {REPEATS} were hits")


def keys(redis_url: str) -> None:
    """Every key, with the seconds it has left; a purge's generation stays, and has none."""
    with redis.Redis.from_url(redis_url) as server:
        print("\nThe keys in Redis (redis-cli --scan), and their TTL:\n")
        for key in sorted(server.scan_iter("*")):
            ttl = server.ttl(key)
            print(f"  {f'{ttl} s' if ttl >= 0 else 'none':>7}  {key.decode()}")


@contextmanager
def _own_service(models: Path) -> Iterator[tuple[str, str]]:
    """Its URL, and that of its embedded Redis, which lies in the temporary directory."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TMPDIR"] = directory
        with serving(redis="embedded", models=models) as service:
            sockets = list(Path(directory).glob("*/redis.sock"))
            yield "http://{}:{}".format(*service.address), f"unix://{sockets[0]}" if sockets else ""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--url", help="a running service, e.g. http://127.0.0.1:8000; by default one is started")
    parser.add_argument("--redis", default="", help="its PREDICT_REDIS_URL")
    parser.add_argument("--models", type=Path, default=MODELS, help="PREDICT_MODELS_DIR of the service that is started")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
