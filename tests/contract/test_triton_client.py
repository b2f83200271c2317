"""An unmodified ``tritonclient[http]``, in an environment of its own (it pins greenlet), works in its defaults."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.contract.environments import SCRIPT, triton_python
from tests.support.server import Server


@pytest.mark.contract
@pytest.mark.timeout(600)
def test_tritons_client_works_in_its_defaults(images: Server, picture: Path) -> None:
    host = images.url.removeprefix("http://")
    command = [str(triton_python()), str(SCRIPT), host, str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept:") >= 10
