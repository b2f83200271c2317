"""One virtual environment per peer, under .venvs, made by uv from the metadata block at the top of its script."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.ours import ROOT
from benchmarks.processes import StartFailed

ENVIRONMENTS = ROOT / ".venvs"
_BLOCK = re.compile(r"(?m)^# /// script$\n((?:^#(?: .*)?$\n)+?)^# ///$")


def interpreter(script: Path) -> Path:
    """The Python that runs ``script``, installed now unless it is there already. Raises StartFailed with the reason."""
    block = _metadata(script)
    home = ENVIRONMENTS / script.stem.removeprefix("serve_")
    python, mark = home / "bin" / "python", home / "installed"
    digest = hashlib.sha256(block.encode()).hexdigest()
    if not (mark.exists() and mark.read_text() == digest):
        wanted = requirements(script)["requires-python"].strip("=.* ")
        _uv("venv", "--quiet", "--clear", "--python", _find_python(wanted), str(home))
        _uv("pip", "install", "--quiet", "--python", str(python), "--requirements", str(script))
        mark.write_text(digest)
    return python


def requirements(script: Path) -> dict[str, Any]:
    """The metadata of ``script``: ``requires-python`` and ``dependencies``."""
    return tomllib.loads(_metadata(script))


def _metadata(script: Path) -> str:
    """The TOML in the comment block."""
    found = _BLOCK.search(script.read_text())
    if found is None:
        raise StartFailed(f"{script.name} has no script metadata")
    return re.sub(r"(?m)^# ?", "", found[1])


def _find_python(wanted: str) -> str:
    """A Python of that version: this one, one on the path, or one that pyenv has. Raises StartFailed without."""
    candidates = [sys.executable, shutil.which(f"python{wanted}") or ""]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        candidates += sorted(map(str, Path(root).glob(f"versions/{wanted}.*/bin/python")))
    for candidate in filter(None, candidates):
        asked = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.startswith(f"Python {wanted}."):
            return candidate
    raise StartFailed(f"Python {wanted} is not installed here")


def _uv(*arguments: str) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise StartFailed("uv is not installed (`pip install uv`)")
    done = subprocess.run(["nice", uv, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(f"uv {arguments[0]}: {' '.join(done.stderr.split())[-200:]}")
