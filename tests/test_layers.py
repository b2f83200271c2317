"""Imports point down only, from __main__ to config and errors; RANKS has all the layers."""

import ast
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType

import httpx
import pytest

from service.app import create_app
from service.config import load_settings
from tests.support.redis_server import running_redis

ROOT = Path(__file__).parent.parent
SERVICE = sorted((ROOT / "service").rglob("*.py"))

RANKS = {
    "errors": 0,
    "logs": 1,
    "config": 2,
    "large_json": 1,
    "rate_limit": 1,
    "cache": 3,
    "inference": 3,
    "metrics": 2,
    "lookup": 4,
    "audit": 5,
    "traces": 5,
    "observer": 6,
    "pipeline": 7,
    "batches": 8,
    "runtime": 9,
    "http": 10,
    "openinference": 11,
    "management": 12,
    "app": 13,
    "server": 14,
    "__main__": 15,
}
"""A module may import those of a lower rank, its own package, and ``service`` itself (the version)."""

ONE = "/predict?sepal_length={}&sepal_width=3&petal_length=2&petal_width=1"

HEAVY = ("torch", "torchvision", "openvino", "sklearn", "joblib", "PIL")
"""What models compute with: seconds to import, and hundreds of megabytes."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "service" and len(parts) > 1 and parts[1] in RANKS else None


@pytest.mark.parametrize("path", SERVICE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "service").with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in RANKS, f"{path.name} has no layer yet: add it to RANKS"
    for module in imports(path):
        other = layer(module)
        if other is None or other == own:
            continue
        assert RANKS[other] < RANKS[own], f"{own} imports {module}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """So every package has floors, from the modules that import none of it to those that nobody there imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SERVICE}
    graph = {name: {module for module in imports(path) if module in names} for name, path in names.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", SERVICE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_service_never_imports_training_benchmarks_or_tests(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {"training", "benchmarks", "tests"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.name)
def test_benchmarks_speak_http_only(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & {"service", "training", "tests"}


def test_what_models_compute_with_is_imported_only_for_a_model_that_needs_it() -> None:
    program = f"import sys, service.server.worker; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", SERVICE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        assert lines <= (220 if isinstance(node, ast.ClassDef) else 45), node.name
        assert isinstance(node, ast.ClassDef) or parameters(node) <= 7, node.name


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["a leased GET", "a batch"])
async def test_a_miss_runs_the_code_of_few_files(form: str, iris_models: Path, tmp_path: Path) -> None:
    """From the ASGI application on; the connection below has a few more."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT / "service"):
            files.add(str(path))

    async def files_of(request: Awaitable[httpx.Response]) -> int:
        files.clear()
        sys.setprofile(note)
        answer = await request
        sys.setprofile(None)
        assert "hit" not in answer.headers["cache-status"].replace("hits=0", "")
        return len(files)

    with running_redis(tmp_path) as redis:
        settings = {"models_dir": str(iris_models), "redis_url": redis.url}
        settings |= {"lease": "always"} if form == "a leased GET" else {}
        app = create_app(load_settings({f"PREDICT_{name.upper()}": value for name, value in settings.items()}))
        async with app.router.lifespan_context(app) as state:
            transport = httpx.ASGITransport(lambda scope, *channels: app({**scope, "state": state}, *channels))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                ask = {
                    "a leased GET": lambda x: client.get(ONE.format(x)),
                    "a batch": lambda x: client.post("/predict_batch", json={"inputs": [[7, 3, x, 2]]}),
                }[form]
                await ask(5)  # the first finds some things out for all others
                assert await files_of(ask(6)) <= 24
