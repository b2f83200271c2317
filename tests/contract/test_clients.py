"""Every program in docs/clients.md runs as it stands, and prints what stands below it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.contract.environments import kserve_python, triton_python
from tests.support.redis_server import running_redis
from tests.support.server import Server, running_server

pytestmark = [pytest.mark.contract, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
TOKEN = "of this test"


class Program(NamedTuple):
    heading: str
    language: str
    text: str
    output: str


def programs() -> list[Program]:
    """Each block of code, with the block of text that follows it."""
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        blocks = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
        for (language, text), (kind, output) in zip(blocks[::2], blocks[1::2], strict=True):
            assert kind == "text"
            found.append(Program(section.partition("\n")[0], language, text, output))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Iterator[Server]:
    """As `make run` starts it, and with an operator's token."""
    from tests.support.untrained import write_both  # not above: it imports torch

    directory = tmp_path_factory.mktemp("clients")
    models = write_both(iris_models, directory)
    with (
        running_redis(directory / "redis") as redis,
        running_server(directory, models_dir=models, redis_url=redis.url, admin_token=TOKEN) as server,
    ):
        yield server


def command(program: Program) -> list[str]:
    """What runs a file with the program."""
    if program.heading.startswith("Triton"):
        return [str(triton_python())]
    if program.heading.startswith("KServe"):
        return [str(kserve_python())]
    wanted = {"python": sys.executable, "sh": "sh", "js": "node"}[program.language]
    return [shutil.which(wanted) or pytest.skip(f"{wanted} is not installed")]


def without_times(text: str) -> str:
    return re.sub(r"ttl=\d+", "ttl=…", text)


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.heading)
def test_every_program_on_the_page_prints_what_it_says(
    program: Program, server: Server, picture: Path, tmp_path: Path
) -> None:
    operator = {"Authorization": f"Bearer {TOKEN}"}
    httpx.post(f"{server.url}/admin/purge", json={"model": "iris"}, headers=operator, timeout=30).raise_for_status()
    shutil.copy(picture, tmp_path / "digit.png")
    file = tmp_path / ("program.mjs" if program.language == "js" else "program")
    file.write_text(program.text.replace("127.0.0.1:8000", server.url.removeprefix("http://")))
    done = subprocess.run([*command(program), str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert without_times(done.stdout) == without_times(program.output), done.stderr
