"""The page at ``/`` in a real Chromium: it chats, stops a reply, and shows whatever is said as text."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from hostile_texts import CARELESS, Hostile, hostile_texts
from serving import ANSWER, Says, learnt, listening, server, stub

from chattune.serve.keys import KeyFile
from chattune.serve.page import page

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: `make tools`")
PICTURES = Path(__file__).parents[1] / "build" / "page"  # kept: how the page looked in the last run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield found
        found.close()


class Canary(BaseHTTPRequestHandler):
    """A server that nobody has a reason to call but for its empty page at ``/``; `heard`: whatever else was asked of it."""

    heard: list[str] = []

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("content-type", "text/html")
        self.end_headers()
        if self.path == "/":
            self.wfile.write(b"<!doctype html><title>careless</title><body>")
        else:
            self.heard.append(self.path)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it heard."""
    Canary.heard.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Canary) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}", Canary.heard
        listener.shutdown()
        thread.join()


def ask(tab: Any, text: str) -> None:
    tab.get_by_label("Message", exact=True).fill(text)
    tab.keyboard.press("Enter")


def replied(tab: Any, number: int = 0) -> str:
    """The text of a reply when it has ended."""
    tab.locator(".turn.assistant:not(.busy)").nth(number).wait_for(state="attached", timeout=20_000)
    return str(tab.locator(".turn.assistant .text").nth(number).text_content())


@needs_chromium
def test_a_person_chats_and_the_page_looks_as_its_picture_shows(browser: Any) -> None:
    began = time.time()
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
        tab.screenshot(path=PICTURES / "chat-light.png")
        tab.get_by_role("button", name="Switch between light and dark").click()
        tab.screenshot(path=PICTURES / "chat-dark.png")
        tab.set_viewport_size({"width": 320, "height": 560})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320, "nothing is cut off on a small screen"
        tab.screenshot(path=PICTURES / "chat-small.png")
        tab.get_by_role("button", name="New chat").click()
        assert tab.locator(".turn").count() == 0
        assert not problems
        tab.close()
    kept = [PICTURES / f"chat-{name}.png" for name in ("light", "dark", "small")]
    assert all(path.stat().st_size > 5000 and path.stat().st_mtime > began - 2 for path in kept)


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
@pytest.mark.parametrize("policy", [True, False])
def test_hostile_texts_are_never_more_than_text(browser: Any, canary: tuple[str, list[str]], policy: bool) -> None:
    """As what a person says, what a model says, what a refusal says and as names of models; with and without the page's policy."""
    address, heard = canary
    texts = [one.text for one in hostile_texts(address)]
    assert len(set(texts)) >= 120
    model = stub(context=200_000)
    said: Any = Says(texts)
    model.engine = said
    with listening(server(model)) as url:
        context = browser.new_context(bypass_csp=not policy)
        tab = context.new_page()
        ran: list[Any] = []
        tab.expose_binding("ran", lambda _, what: ran.append(what))
        tab.on("dialog", lambda dialog: (ran.append("dialog"), dialog.dismiss()))
        tab.add_init_script("addEventListener('securitypolicyviolation', (event) => ran(event.blockedURI))")
        tab.goto(url)
        tab.wait_for_selector("#model option", state="attached")
        shown = tab.evaluate(SAY, texts)
        assert said.given == len(texts)
        assert [one["user"] for one in shown] == [re.sub("\r\n?", "\n", text) for text in tab.evaluate(TRIM, texts)]
        assert [one["reply"] for one in shown] == texts
        refusal = iter([json.dumps({"error": {"message": text}}) for text in texts])
        tab.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, body=next(refusal)))
        refused = tab.evaluate(SAY, ["a"] * len(texts))
        assert [one["facts"] for one in refused] == texts
        assert {one["elements"] for one in [*shown, *refused]} == {0}
        names = json.dumps({"data": [{"id": text} for text in texts]})
        tab.route("**/v1/models", lambda route: route.fulfill(status=200, body=names))
        tab.evaluate("document.getElementById('key').dispatchEvent(new Event('change'))")
        tab.wait_for_function("length => document.getElementById('model').options.length === length", arg=len(texts))
        assert tab.evaluate("[...document.getElementById('model').options].map((option) => option.textContent)") == texts
        tab.wait_for_timeout(300)
        assert tab.locator("option *").count() == 0
        assert tab.evaluate("document.querySelectorAll('script, style, link, meta').length") == page()[0].decode().count("<meta") + 3
        assert tab.url == url + "/"
        assert (ran, heard) == ([], [])
        context.close()


@needs_chromium
@pytest.mark.security
def test_every_hostile_text_does_its_work_on_a_careless_page(browser: Any, canary: tuple[str, list[str]]) -> None:
    """The positive control: each of them can be seen to run, or to load from elsewhere, where a page lets it."""
    address, heard = canary
    texts = hostile_texts(address)
    context = browser.new_context()
    tab = context.new_page()
    ran: list[int] = []
    tab.expose_binding("ran", lambda _, number: ran.append(number))
    tab.goto(address)
    tab.evaluate(CARELESSLY, [[CARELESS[one.way], one.text] for one in texts])

    def idle() -> list[Hostile]:
        done = {*ran} | {int(found[1]) for path in heard if (found := re.match(r"/(\d+)\b", path))}
        return [one for one in texts if one.number not in done]

    end = time.monotonic() + 20
    while idle() and time.monotonic() < end:
        tab.wait_for_timeout(100)
    assert idle() == []
    context.close()


# Each text is sent, and whatever the page then shows is touched. What it shows: of the person, of the model, and beneath it.
SAY = """async (texts) => {
    const at = (id) => document.getElementById(id), found = [];
    for (const text of texts) {
        at('fresh').click();
        at('text').value = text;
        at('form').requestSubmit();
        while (at('log').getAttribute('aria-busy') === 'true') await new Promise((done) => setTimeout(done, 1));
        for (const one of at('log').querySelectorAll('*')) {
            one.focus?.();
            for (const kind of ['mouseover', 'click']) one.dispatchEvent(new MouseEvent(kind, { bubbles: true, cancelable: true }));
        }
        const [user, reply, facts] = ['.user .text', '.assistant .text', '.facts'].map((kind) => at('log').querySelector(kind));
        found.push({
            user: user.textContent, reply: reply.textContent, facts: facts.textContent,
            elements: [user, reply, facts].reduce((sum, one) => sum + one.querySelectorAll('*').length, 0),
        });
    }
    return found;
}"""
TRIM = "(texts) => texts.map((text) => text.trim())"
# Each text in a frame of its own, put there as a careless page would; then whatever can be touched is touched.
CARELESSLY = """async (texts) => {
    const frames = texts.map(([code, text]) => {
        const place = document.createElement('iframe');
        place.style = 'position: absolute; top: 0; left: 0';
        document.body.append(place);
        const frame = place.contentWindow, page = place.contentDocument, insert = (html) => { page.body.innerHTML = html; };
        new Function('frame', 'page', 'insert', 'text', 'refs', code)(frame, page, insert, text, {});
        return frame;
    });
    await new Promise((done) => setTimeout(done, 500));
    for (const frame of frames) {
        let page = null;
        try { page = frame.document; } catch { continue; } // it has gone elsewhere already
        for (const one of page.querySelectorAll('body *')) {
            one.focus?.();
            const events = one.matches('a, area, button, [onclick]') ? ['mouseover', 'click'] : ['mouseover'];
            for (const kind of events) one.dispatchEvent(new MouseEvent(kind, { bubbles: true, cancelable: true, view: frame }));
        }
    }
}"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1920])
def test_axe_finds_nothing_that_hinders_anybody(browser: Any, scheme: str, width: int) -> None:
    def violations() -> dict[str, Any]:
        found = Axe().run(tab).response["violations"]
        return {one["id"]: [one["impact"], *(node["html"][:200] for node in one["nodes"])] for one in found}

    model = stub(seconds=0.02)
    with listening(server(model)) as url:
        # axe is a script that the page's policy does not know.
        context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 700})
        tab = context.new_page()
        tab.goto(url)
        tab.wait_for_selector("#model option", state="attached")
        assert violations() == {}, "at first"
        tab.get_by_role("button", name="Options").click()
        tab.get_by_label("Most tokens").fill("4")
        assert violations() == {}, "with its options"
        ask(tab, "hello")
        replied(tab)
        assert violations() == {}, "with a reply"
        tab.get_by_label("Most tokens").fill("")
        ask(tab, "hello")
        tab.wait_for_selector(".turn.assistant.busy .text:not(:empty)")
        assert violations() == {}, "while it replies"
        tab.get_by_role("button", name="Stop").click()
        replied(tab, 1)
        tab.get_by_label("Temperature").fill("9")
        ask(tab, "hello")
        replied(tab, 2)
        assert tab.locator(".facts.error").count() == 1
        assert violations() == {}, "with a refusal"
        tab.get_by_role("button", name="Switch between light and dark").click()
        assert violations() == {}, "in the other colours"
        tab.evaluate("document.getElementById('model').removeAttribute('aria-label')")
        tab.evaluate("document.documentElement.style.setProperty('--soft', 'color-mix(in srgb, var(--paper) 70%, var(--ink))')")
        found = violations()
        assert (found["select-name"][0], found["color-contrast"][0]) == ("critical", "serious"), "the control: such things are seen"
        context.close()


@pytest.mark.security
def test_the_page_brings_everything_itself_and_forbids_all_else() -> None:
    html, headers = page()
    text = html.decode()
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
    assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text
    assert " on" + "click=" not in text and "style=" not in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 2
