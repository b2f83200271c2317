"""A real Prometheus scrapes the service: names follow its conventions, and every expression finds something."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.support.process import PATIENCE, Process, eventually, free_port
from tests.support.redis_server import RedisServer
from tests.support.server import Server, running_server

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
SECONDS = 3.0
ANSWERS = "/predict?sepal_length={}&sepal_width=3.5&petal_length=1.4&petal_width=0.2"

EXPRESSIONS = {panel["title"]: [t["expr"] for t in panel["targets"]] for panel in DASHBOARD["panels"]}


def test_the_rules_alert_when_they_should(program: Callable[[str], str]) -> None:
    promtool = program("promtool")
    subprocess.run([promtool, "check", "config", "prometheus.yml"], cwd=PROMETHEUS, check=True)
    subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=PROMETHEUS, check=True)


@pytest.fixture(scope="module")
def service(iris_models: Path, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("scraped")
    given = {"models_dir": iris_models, "redis_url": redis_server.url, "audit_share": 1}
    with running_server(directory, **given) as service:
        yield service


def test_names_are_as_the_conventions_have_them(service: Server, program: Callable[[str], str]) -> None:
    text = urllib.request.urlopen(f"{service.url}/metrics", timeout=PATIENCE).read()
    found = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


def test_who_prefers_OpenMetrics_has_the_same_families_in_it(service: Server) -> None:
    def families(accept: str, media_type: str, parse: Callable[[str], Iterable[Metric]]) -> set[tuple[str, str]]:
        request = urllib.request.Request(f"{service.url}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert response.headers.get_content_type() == media_type
            return {(family.name, family.type) for family in parse(response.read().decode())}

    plain = families("text/plain", "text/plain", parser.text_string_to_metric_families)
    openmetrics = families(
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
        "application/openmetrics-text",
        openmetrics_parser.text_string_to_metric_families,
    )
    assert plain == openmetrics and ("predict_requests", "counter") in plain


@pytest.fixture(scope="module")
def prometheus(service: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[Any]]]:
    """Ask it, once it has scraped the service under load."""
    binary = shutil.which("prometheus") or pytest.skip("prometheus is not installed")
    directory, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(PROMETHEUS / "rules.yml")]
    config["scrape_configs"] = [{"job_name": "predict", "static_configs": [{"targets": [f"127.0.0.1:{service.port}"]}]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    process = Process([binary, *arguments, f"--web.listen-address=127.0.0.1:{port}"], directory / "log")

    def ask(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=PATIENCE) as response:
            return list(json.load(response)["data"]["result"])

    def scraped() -> bool:
        try:
            return bool(ask("predict_l2_up"))
        except OSError:
            return False

    try:
        eventually(scraped, within=PATIENCE)
        end = time.monotonic() + SECONDS
        number = 0
        while time.monotonic() < end:  # computed, from Redis, from memory, and refused
            for target in (ANSWERS.format(4 + number % 40 / 10), ANSWERS.format(5.1), ANSWERS.format("x")):
                for _ in range(3):
                    service.status(target)
            number += 1
        yield ask
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.deploy
@pytest.mark.parametrize("panel", EXPRESSIONS)
def test_every_panel_of_the_dashboard_shows_something(panel: str, prometheus: Callable[[str], list[Any]]) -> None:
    for expression in EXPRESSIONS[panel]:
        assert prometheus(expression.replace("$model", ".*").replace("$__rate_interval", "30s")), expression


@pytest.mark.deploy
def test_every_rule_asks_for_series_that_there_are(prometheus: Callable[[str], list[Any]]) -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    for rule in rules:
        for name in set(re.findall(r"\bpredict_\w+", rule["expr"])):
            assert prometheus(name), name
    assert prometheus("predict:hit_ratio:rate5m")
    assert prometheus('ALERTS{alertname="PredictWrongAnswers"}') == []
