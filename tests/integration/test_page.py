"""The page in a real browser: Debian's chromium, headless. `PAGE_SCREENSHOTS=DIR` keeps the pictures, and
`PAGE_CHECKPOINT` has another policy play than one that has learned nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from decoder_helpers import write_image_checkpoint, write_random_decoder
from policy_helpers import write_tiny_policy

from rllib_efficientzero.policy import load_policy

pytest.importorskip("fastapi")
api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]
TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a policy that plays CartPole."""
    directory = tmp_path_factory.mktemp("policy")
    write_tiny_policy(directory, num_actions=2, env="CartPole-v1")
    with serving(pathlib.Path(os.environ.get("PAGE_CHECKPOINT", directory))) as found:
        yield found


@contextlib.contextmanager
def serving(policy: pathlib.Path, decoder: pathlib.Path | None = None, token: str | None = None) -> Iterator[str]:
    """A server in a thread; its address."""
    import uvicorn

    from rllib_efficientzero.serve.local import build_local
    from rllib_efficientzero.serve.service import PolicyService

    app = build_local(PolicyService(policy, decoder=decoder), token=token)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with opened_at(browser, address) as opened:
        yield opened


@contextlib.contextmanager
def opened_at(browser: Any, address: str) -> Iterator[Any]:
    """The page with its first position; whatever it complains of, or fetches from elsewhere, is a failure."""
    opened = browser.new_page(viewport={"width": 1100, "height": 880})
    opened.set_default_timeout(TIMEOUT_MS)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda request: wrong.append(request.url) if not _is_own(request.url, address) else None)
    opened.goto(address)
    api.expect(opened.locator("#n-value")).not_to_have_text("\N{EN DASH}", timeout=TIMEOUT_MS)
    yield opened
    opened.close()
    assert wrong == []


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address, "data:"))


def number(page: Any, name: str) -> float:
    return float(page.locator(f"#n-{name}").inner_text())


def wait_until(page: Any, condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def keep(page: Any, name: str) -> None:
    directory = os.environ.get("PAGE_SCREENSHOTS")
    if directory:
        page.screenshot(path=str(pathlib.Path(directory) / name), full_page=True)


def visits(page: Any) -> int:
    return sum(int(text) for text in page.locator("#actions td:nth-child(2) span").all_inner_texts())


def test_it_plays_and_shows_what_the_search_thinks(page: Any) -> None:
    first = page.locator("#frame").get_attribute("src")
    page.locator("#speed").fill("5")
    page.locator("#play").click()
    wait_until(page, lambda: number(page, "step") >= 8)
    page.locator("#play").click()
    page.wait_for_timeout(300)
    stopped = number(page, "step")
    page.wait_for_timeout(400)
    assert number(page, "step") == stopped, "paused"
    assert page.locator("#frame").get_attribute("src") != first
    assert page.locator("#actions tr").count() == 2
    assert page.locator("#actions tr.chosen").count() == 1
    assert len(page.locator("#values polyline").get_attribute("points").split()) > 8
    assert page.locator("#prefixes rect").count() >= 1
    assert page.locator("#imagination").is_hidden(), "this server has no decoder"
    keep(page, "page.png")


def test_the_slider_changes_the_search(page: Any) -> None:
    step = number(page, "step")
    page.locator("#simulations").fill("6")
    page.locator("#simulations").dispatch_event("change")
    wait_until(page, lambda: visits(page) == 32)
    assert number(page, "step") == step, "the same position, thought about again"
    page.locator("#simulations").fill("0")
    page.locator("#simulations").dispatch_event("change")
    wait_until(page, lambda: visits(page) == 0)
    api.expect(page.locator("#line")).to_have_text("no search, no line")


def test_a_person_takes_over_with_the_keyboard_alone(page: Any) -> None:
    page.keyboard.press("t")
    api.expect(page.locator("#takeover")).to_have_attribute("aria-pressed", "true")
    assert page.locator("#actions button").count() == 2
    for expected in (1, 2, 3):
        page.keyboard.press("1")
        wait_until(page, lambda wanted=expected: number(page, "step") == wanted)
        page.wait_for_timeout(100)
    told = page.locator("#told").inner_text()
    assert told.startswith("You took 1")
    assert re.search(r"Q\s-?\d", told)
    page.keyboard.press("t")
    page.keyboard.press(".")
    wait_until(page, lambda: number(page, "step") == 4)
    page.keyboard.press("n")
    wait_until(page, lambda: number(page, "step") == 0)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"play", "step", "new", "takeover", "speed", "simulations"} <= reached
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    wait_until(page, lambda: number(page, "step") >= 1)


def test_it_shows_what_the_model_imagines(browser: Any, tmp_path: pathlib.Path) -> None:
    """One picture for now and one per step of the principal line, each named; they change with the position."""
    decoder = write_random_decoder(tmp_path / "d.safetensors", load_policy(write_image_checkpoint(tmp_path)))
    with serving(tmp_path, decoder) as address, opened_at(browser, address) as page:
        pictures = page.locator("#imagined img")
        steps = page.locator("#line").inner_text().split(" \N{RIGHTWARDS ARROW} ")
        assert pictures.count() == 1 + len(steps) > 1
        names = page.locator("#imagined span").all_inner_texts()
        assert names == ["now", *(step.split()[0] for step in steps)]
        drawn = pictures.evaluate_all("all => all.every(one => one.naturalWidth >= 200 && one.clientWidth >= 50)")
        assert drawn
        first = pictures.first.get_attribute("src")
        page.keyboard.press(".")
        wait_until(page, lambda: number(page, "step") == 1)
        wait_until(page, lambda: pictures.first.get_attribute("src") != first)
        page.locator("#simulations").fill("0")
        page.locator("#simulations").dispatch_event("change")
        api.expect(page.locator("#imagination")).to_be_hidden()


def test_it_brings_the_token_of_its_address(browser: Any, tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path, num_actions=2, env="CartPole-v1")
    with serving(tmp_path, token="secret") as address:
        without, with_token = (browser.new_page() for _ in range(2))
        without.goto(address)
        api.expect(without.locator("#about")).to_have_text("a bearer token is needed", timeout=TIMEOUT_MS)
        with_token.goto(f"{address}#token=secret")
        api.expect(with_token.locator("#n-value")).not_to_have_text("\N{EN DASH}", timeout=TIMEOUT_MS)
        with_token.keyboard.press(".")
        wait_until(with_token, lambda: number(with_token, "step") == 1)
        for page in (without, with_token):
            page.close()


def test_it_can_be_read_on_a_phone_and_in_the_dark(page: Any) -> None:
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing to scroll sideways"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert brightness(dark) < 0.2 < 0.8 < brightness(light)
    assert brightness(ink) > 0.7
    for name in ("play", "step", "new", "takeover"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["height"] >= 40, "as large as a finger"
    keep(page, "page-phone.png")


def brightness(colour: str) -> float:
    parts = [float(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    return sum(parts) / len(parts) / 255
