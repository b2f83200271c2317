"""The page in a real Chromium: a cold answer turns warm, faults are told where they are, and everybody can use it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.redis_server import RedisServer
from tests.support.server import Server, running_server
from tests.support.untrained import write_both

pytestmark = pytest.mark.deploy

FILES = Path(__file__).parents[2] / "service" / "management" / "page"
MOST_BYTES = 60_000
SECONDS = 10
"""A new visitor makes a cold answer warm in less."""


@pytest.fixture(scope="module")
def service(iris_models: Path, tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("both")
    models = write_both(iris_models, directory)
    with running_server(directory, models_dir=models, redis_url=redis_server.url) as service:
        yield service


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium") or pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, service: Server) -> Iterator[Page]:
    """An open page; at the end, that its browser had nothing to complain about."""
    context = chromium.new_context(locale="en-GB", permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(service.url)
    expect(page.locator("#model")).to_have_value("digits")
    yield page
    # A refused request is a line in the console, whatever the page does about it.
    assert [complaint for complaint in complaints if "Failed to load resource" not in complaint] == []
    context.close()


def test_a_cold_answer_turns_warm_within_seconds(page: Page) -> None:
    started = time.monotonic()
    page.select_option("#model", "iris")
    page.get_by_label("petal width").last.fill("1.7")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#how")).to_contain_text("Computed")
    expect(page.locator("#prediction")).to_have_text(re.compile("setosa|versicolor|virginica"))
    for _ in range(3):  # in Redis, and from its second use on in memory
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_timeout(200)
    expect(page.locator("#how")).to_contain_text("Hit in memory")
    assert time.monotonic() - started < SECONDS
    page.get_by_role("button", name="Ask 100 ×").click()
    expect(page.locator("#repeating")).to_be_hidden(timeout=30_000)
    assert page.locator("#dots path.mark.memory").count() > 90
    expect(page.locator("#ratio")).to_contain_text("Median computed")


def test_the_box_in_which_an_answer_holds_is_shown_and_asks_nothing(page: Page, service: Server) -> None:
    page.select_option("#model", "iris")
    page.get_by_role("button", name="Example").click()
    box = page.locator(".box").first
    expect(box).to_be_visible()
    asked = service.metric("predict_requests_total", route="/models/{name}/predict")
    slider = page.locator("input[type=range]").nth(3)
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#how")).to_contain_text("Same answer, without asking")
    assert service.metric("predict_requests_total", route="/models/{name}/predict") == asked


def test_an_image_is_asked_about_as_the_example_a_file_or_a_drawing(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Example").click()
    expect(page.locator("#prediction")).to_have_text(re.compile(r"\d"))
    expect(page.locator("#bars li")).to_have_count(5)
    canvas = page.locator("canvas")
    middle = canvas.bounding_box()
    assert middle is not None
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + middle["height"] / 2, steps=5)
    with page.expect_response("**/models/digits/predict*"):  # what is let go is asked about
        page.mouse.up()
    expect(page.locator("#how")).to_contain_text("Computed")
    with page.expect_response("**/models/digits/predict*"):
        page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#how")).to_contain_text("Hit")


def test_a_fault_is_told_beside_its_field(page: Page) -> None:
    page.select_option("#model", "iris")
    page.get_by_label("sepal width").last.fill("99")
    page.get_by_role("button", name="Ask", exact=True).click()
    field = page.locator(".field", has_text="sepal width")
    expect(field.locator(".fault")).to_contain_text("must be between 0 and 10")
    expect(field.locator("input[type=number]")).to_have_attribute("aria-invalid", "true")


def test_redis_away_is_said_and_costs_no_answer(page: Page, redis_server: RedisServer) -> None:
    page.select_option("#model", "iris")
    expect(page.locator("#state")).to_contain_text("up")
    redis_server.kill()
    try:
        expect(page.locator("#banner")).to_contain_text("Redis is away", timeout=30_000)
        page.get_by_label("petal length").last.fill("3.21")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#how")).to_contain_text("Computed")
    finally:
        redis_server.restart()
    expect(page.locator("#banner")).to_be_hidden(timeout=30_000)


def test_a_redis_without_writes_is_said_and_figures_that_a_proxy_keeps_back_are_not_zeros(page: Page) -> None:
    expect(page.locator("#live")).to_contain_text("workers")
    ready = {"status": "ready", "cache": "read-only", "models": [], "failed": {}}
    page.route("**/readyz", lambda route: route.fulfill(json=ready))
    page.route("**/metrics", lambda route: route.fulfill(status=404, json={}))
    expect(page.locator("#state")).to_contain_text("takes no writes")
    expect(page.locator("#live")).to_be_hidden()


def test_what_is_copied_runs(page: Page) -> None:
    page.select_option("#model", "iris")
    page.get_by_role("button", name="Example").click()
    expect(page.locator("#code")).to_contain_text("curl")
    answer = subprocess.run(["bash", "-c", page.inner_text("#code")], capture_output=True, check=True).stdout
    assert json.loads(answer)["model"] == "iris"
    page.get_by_role("button", name="Python").click()
    assert "requests.get(" in page.inner_text("#code")
    printed = subprocess.run([sys.executable, "-c", page.inner_text("#code")], capture_output=True, check=True).stdout
    assert b"'model': 'iris'" in printed and b"predict; hit" in printed


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("model", ["iris", "digits"])
def test_everybody_can_use_it(page: Page, scheme: str, width: int, model: str) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    page.select_option("#model", model)
    page.get_by_role("button", name="Example").click()
    expect(page.locator("#bars li").first).to_be_visible()
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    for part, least in (("#bars .track", 0.25), ("#dots .mark", 8 / width)):  # bars show a share, dots are not squeezed
        box = page.locator(part).first.bounding_box()
        assert box is not None and box["width"] >= least * width


def test_it_speaks_chinese_to_who_does(page: Page) -> None:
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#ask")).to_have_text("提问")
    expect(page.locator("html")).to_have_attribute("lang", "zh")


def test_it_is_small_and_needs_nobody_else() -> None:
    files = list(FILES.iterdir())
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    for file in files:
        assert not re.search(r"https?://(?!www\.w3\.org/)", file.read_text()), file
