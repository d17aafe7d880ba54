"""The page at ``/`` in a real Chromium: it chats, stops a reply, and shows whatever is said as text."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ANSWER, Says, learnt, listening, server, stub

from chattune.serve.keys import KeyFile
from chattune.serve.page import page

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: `make tools`")
PAYLOADS = (
    "<script>pwn()</script>",
    "<img src=x onerror=pwn()>",
    "<svg onload=pwn()>",
    "<iframe srcdoc='<script>parent.pwn()</script>'></iframe>",
    "[x](javascript:pwn())",
    "![x](CANARY/a.png)",
    "<a href='CANARY/b' ping='CANARY/c'>x</a>",
    "<link rel=stylesheet href=CANARY/d>",
    "<style>@import 'CANARY/e'; body{background:url(CANARY/f)}</style>",
    "</div><body onpageshow=pwn()>",
    "<meta http-equiv=refresh content='0;CANARY/g'>",
    "<form action=CANARY/h><button autofocus onfocus=pwn()>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=pwn()>",
    "{{constructor.constructor('pwn()')()}}",
    "\u202e<video src=CANARY/i onerror=pwn()>",
    "<base href=CANARY/>",
    "<object data=CANARY/j>",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.fixture
def canary() -> Iterator[tuple[str, list[bytes]]]:
    """A listener that nobody has a reason to call, and what it heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    line, _ = listener.accept()
                except TimeoutError:
                    continue
                with line:
                    heard.append(line.recv(1000))

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        ended.set()
        thread.join()


def ask(tab: Any, text: str) -> None:
    tab.get_by_label("Message", exact=True).fill(text)
    tab.keyboard.press("Enter")


def replied(tab: Any, number: int = 0) -> str:
    """The text of a reply when it has ended."""
    tab.locator(".turn.assistant:not(.busy)").nth(number).wait_for(state="attached", timeout=20_000)
    return str(tab.locator(".turn.assistant .text").nth(number).text_content())


@needs_chromium
def test_a_person_chats_and_the_page_looks_as_its_picture_shows(browser: Any, tmp_path: Path) -> None:
    with listening(server(learnt())) as url:
        tab = browser.new_page(viewport={"width": 900, "height": 640})
        problems: list[str] = []
        tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(url)
        tab.wait_for_selector("#model option", state="attached")
        tab.keyboard.press("Tab")  # the field has the focus at once: it can be typed into without a mouse
        tab.get_by_role("button", name="Options").click()
        tab.get_by_label("Temperature").fill("0")
        tab.get_by_role("button", name="Options").click()
        ask(tab, "hello")
        assert replied(tab) == ANSWER
        assert "tokens" in str(tab.locator(".turn.assistant .facts").first.text_content())
        tab.screenshot(path=tmp_path / "chat-light.png")
        tab.get_by_role("button", name="Switch between light and dark").click()
        tab.screenshot(path=tmp_path / "chat-dark.png")
        tab.set_viewport_size({"width": 320, "height": 560})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, "nothing is cut off on a small screen"
        tab.screenshot(path=tmp_path / "chat-small.png")
        tab.get_by_role("button", name="New chat").click()
        assert tab.locator(".turn").count() == 0
        assert not problems
        tab.close()
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png"))


@needs_chromium
@pytest.mark.parametrize("by", ["button", "Escape"])
def test_a_reply_is_stopped_by_button_and_by_key(browser: Any, by: str) -> None:
    model = stub(seconds=0.02)
    with listening(server(model)) as url:
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_selector("#model option", state="attached")
        ask(tab, "hello")
        tab.locator(".turn.assistant .text").get_by_text("👩‍👩‍👧").wait_for(timeout=20_000)
        if by == "button":
            tab.get_by_role("button", name="Stop").click()
        else:
            tab.keyboard.press("Escape")
        text = replied(tab)
        assert "stopped" in str(tab.locator(".turn.assistant .facts").first.text_content())
        tab.wait_for_timeout(300)
        assert tab.locator(".turn.assistant .text").first.text_content() == text, "nothing comes any more"
        assert model.admission.used == 0, "the server decodes no further"
        ask(tab, "again")
        tab.wait_for_selector(".turn.assistant.busy")
        tab.close()


@needs_chromium
def test_a_key_is_asked_for_where_there_is_one(browser: Any, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.create("anna")
    with listening(server(learnt(), keys=keys)) as url:
        tab = browser.new_page()
        tab.goto(url)
        tab.wait_for_selector("#key:visible")
        tab.get_by_label("Key").fill(key)
        tab.get_by_label("Key").press("Tab")
        tab.wait_for_selector("#model option", state="attached")
        tab.get_by_label("Temperature").fill("0")
        ask(tab, "hello")
        assert replied(tab) == ANSWER
        tab.close()


@needs_chromium
@pytest.mark.requirement("I21", "I22")
@pytest.mark.security
def test_what_a_model_says_is_never_more_than_text(browser: Any, canary: tuple[str, list[bytes]]) -> None:
    address, heard = canary
    payloads = [payload.replace("CANARY", address) for payload in PAYLOADS]
    model = stub(context=20_000)
    said: Any = Says(payloads)
    model.engine = said
    with listening(server(model)) as url:
        tab = browser.new_page()
        pwned: list[str] = []
        tab.expose_binding("pwn", lambda source: pwned.append("pwn"))
        tab.on("dialog", lambda dialog: (pwned.append("dialog"), dialog.dismiss()))
        tab.goto(url)
        tab.wait_for_selector("#model option", state="attached")
        for number, payload in enumerate(payloads):
            ask(tab, payload)
            assert replied(tab, number) == payload
        tab.wait_for_timeout(300)
        assert tab.locator("main img, main svg, main iframe, main a, main link, main style, main form, main script").count() == 0
        assert not pwned and not heard
        tab.close()
        lax = browser.new_context(bypass_csp=True).new_page()
        lax.expose_binding("pwn", lambda source: pwned.append("pwn"))
        lax.goto(url)
        lax.evaluate("text => { document.querySelector('main').innerHTML = text }", f"<img src={address}/control.png onerror=pwn()>")
        lax.wait_for_timeout(500)
        assert pwned and heard, "the positive control: as HTML, without our policy, such a text runs and loads"
        lax.close()


@pytest.mark.security
def test_the_page_brings_everything_itself_and_forbids_all_else() -> None:
    html, headers = page()
    text = html.decode()
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text
    assert " on" + "click=" not in text and "style=" not in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 2
