"""schemathesis finds nothing: against our own description, and against the Open Inference Protocol's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPEN_INFERENCE = ROOT.parent / "shared" / "data" / "open_inference_rest.yaml"
SHORT = ["--phases", "examples,coverage", "--generation-deterministic", "--suppress-health-check", "all"]
LONG = ["--max-examples", "100"]


def finds_nothing(config: str, *arguments: str, cwd: Path, **environ: str) -> None:
    """``cwd``: where it may leave what it remembers."""
    st = Path(sys.executable).with_name("st")
    command = [str(st), "--config-file", str(HERE / config), "run", *arguments, "--no-color", "--continue-on-failure"]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout, done.stdout


def test_our_own_description(tables: Server, tmp_path: Path) -> None:
    finds_nothing("schemathesis.toml", f"{tables.url}/openapi.json", *SHORT, cwd=tmp_path)


@pytest.mark.contract
@pytest.mark.timeout(1800)
def test_our_own_description_with_images_at_length(images: Server, tmp_path: Path) -> None:
    hooks = {"SCHEMATHESIS_HOOKS": "tests.contract.hooks", "PYTHONPATH": str(ROOT)}
    finds_nothing("schemathesis.toml", f"{images.url}/openapi.json", *LONG, cwd=tmp_path, **hooks)


@pytest.mark.contract
def test_our_own_description_of_features_of_all_types(typed: Server, tmp_path: Path) -> None:
    finds_nothing("schemathesis.toml", f"{typed.url}/openapi.json", *SHORT, cwd=tmp_path)


@pytest.fixture
def open_inference(tmp_path: Path) -> Path:
    if not OPEN_INFERENCE.exists():
        pytest.skip(f"the protocol's OpenAPI file is not at {OPEN_INFERENCE}")
    mended = tmp_path / "open_inference.yaml"
    mended.write_text(OPEN_INFERENCE.read_text().replace("${", "{"))
    return mended


def test_the_protocols_description(tables: Server, open_inference: Path, tmp_path: Path) -> None:
    finds_nothing("open_inference.toml", str(open_inference), "--url", tables.url, *SHORT, cwd=tmp_path)


@pytest.mark.contract
@pytest.mark.timeout(1800)
def test_the_protocols_description_at_length(tables: Server, open_inference: Path, tmp_path: Path) -> None:
    finds_nothing("open_inference.toml", str(open_inference), "--url", tables.url, *LONG, cwd=tmp_path)
