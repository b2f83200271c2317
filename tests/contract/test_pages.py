"""The commands of README.md and docs/http.md run as they stand, and print what stands below them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import errors
from tests.support.redis_server import running_redis
from tests.support.server import Server, running_server

ROOT = Path(__file__).parents[2]
README, HTTP = ROOT / "README.md", ROOT / "docs" / "http.md"
TOKEN = "secret"
MARK = "--- the next command ---"
CHANGES = [
    (r"ttl=\d+|max-age=\d+", "seconds"),
    (r"dur=[\d.]+", "milliseconds"),
    (r'"[0-9a-f]{12}"', '"version"'),
    (r'W/"[\w-]+"', "tag"),
]
"""What differs from one run to the next."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Path:
    from tests.support.untrained import write_both  # not above: it imports torch

    return write_both(iris_models, tmp_path_factory.mktemp("both"))


@pytest.fixture
def server(tmp_path: Path, models: Path) -> Iterator[Server]:
    """As `make run` starts it, and with an operator's token."""
    with (
        running_redis(tmp_path / "redis") as redis,
        running_server(tmp_path / "server", models_dir=models, redis_url=redis.url, admin_token=TOKEN) as server,
    ):
        yield server


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def without_changes(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if not line.startswith("date: ")]
    text = "\n".join(lines).strip()
    for pattern, name in CHANGES:
        text = re.sub(pattern, name, text)
    return text


def shell(text: str, server: Server, picture: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(picture, directory / "digit.png")
    text = text.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    text = text.replace(".venv/bin/python", f"PYTHONPATH={ROOT} {sys.executable}")
    return subprocess.run(["bash", "-c", text], cwd=directory, capture_output=True, text=True, timeout=120)


@pytest.mark.contract
@pytest.mark.parametrize("page", [README, HTTP], ids=lambda page: page.name)
def test_every_command_prints_what_the_page_says(page: Path, server: Server, picture: Path, tmp_path: Path) -> None:
    commands = [
        (command, output)
        for block in blocks(page, "console")
        for command, _, output in (part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
    ]
    assert commands
    script = "\n".join(f"{command}\necho; echo '{MARK}'" for command, _ in commands)
    done = shell(script, server, picture, tmp_path)
    for (command, output), printed in zip(commands, done.stdout.split(MARK), strict=False):
        assert without_changes(printed) == without_changes(output), (command, done.stderr)


@pytest.mark.contract
def test_every_form_of_a_question_in_the_readme_is_answered(server: Server, picture: Path, tmp_path: Path) -> None:
    [forms] = [block for block in blocks(README, "sh") if block.startswith("url=")]
    strict = 'set -eu; curl() { command curl -sS --fail-with-body "$@"; echo; }\n'
    done = shell(strict + forms, server, picture, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("prediction") >= forms.count("curl ")


def test_the_table_of_errors_has_each_that_a_request_may_meet() -> None:
    listed = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", HTTP.read_text(), re.MULTILINE)
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)}
    assert sorted(listed) == sorted({(str(kind.status), kind.type) for kind in kinds})
