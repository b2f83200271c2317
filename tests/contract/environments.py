"""Virtual environments of their own for clients that cannot live in ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).parents[2] / ".venvs"
SCRIPT = Path(__file__).with_name("triton_client.py")
KSERVE = "kserve==0.21.0"


def environment(name: str, wanted: str, *requirements: str) -> Path:
    """The Python of an environment with these requirements, as uv takes them, made again when ``wanted`` changes."""
    directory = DIRECTORY / name
    python, mark = directory / "bin" / "python", directory / "installed"
    if not (mark.exists() and mark.read_text() == wanted):
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(directory))
        _uv("pip", "install", "--quiet", "--python", str(python), *requirements)
        mark.write_text(wanted)
    return python


def _uv(*arguments: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run([str(uv), *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"an environment cannot be made: {' '.join(done.stderr.split())[-300:]}")


def triton_python() -> Path:
    """The Python that has what the script's metadata ask for."""
    return environment("tritonclient", SCRIPT.read_text().partition("# ///\n")[0], "--requirements", str(SCRIPT))


def kserve_python() -> Path:
    return environment("kserve", KSERVE, KSERVE)
