"""An unmodified ``tritonclient[http]``, in an environment of its own (it pins greenlet), works in its defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server

SCRIPT = Path(__file__).with_name("triton_client.py")
ENVIRONMENT = Path(__file__).parents[2] / ".venvs" / "tritonclient"


@pytest.fixture(scope="session")
def interpreter() -> Path:
    """The Python that has what the script's metadata ask for."""
    python, mark = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed"
    wanted = SCRIPT.read_text().partition("# ///\n")[0]
    if not (mark.exists() and mark.read_text() == wanted):
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT))
        _uv("pip", "install", "--quiet", "--python", str(python), "--requirements", str(SCRIPT))
        mark.write_text(wanted)
    return python


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run([str(uv), *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the environment of tritonclient cannot be made: {' '.join(done.stderr.split())[-300:]}")


@pytest.mark.contract
@pytest.mark.timeout(600)
def test_tritons_client_works_in_its_defaults(interpreter: Path, images: Server, picture: Path) -> None:
    host = images.url.removeprefix("http://")
    done = subprocess.run([str(interpreter), str(SCRIPT), host, str(picture)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept:") >= 10
