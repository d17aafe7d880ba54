"""Pages that the user names: fetched once, with manners, within limits, and from nowhere that was not meant."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chattune.core import files
from chattune.core.config import validate
from chattune.core.errors import DataError
from chattune.dialogs.artifact import Conversations
from chattune.dialogs.stage import CollectConfig, collect
from chattune.dialogs.web import Collector, Web, is_address, is_public

Page = tuple[int, dict[str, str], bytes]


class Site:
    """A server on this machine: what it answers by path, and what it was asked for."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self.pages, self.asked, self.agents = pages, list[str](), set[str]()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                site.agents.add(self.headers["User-Agent"])
                status, headers, body = site.pages.get(self.path, (404, {}, b"nothing here"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"


def html(body: bytes = b"<html><body>hi</body></html>", **headers: str) -> Page:
    return 200, {"Content-Type": "text/html", **headers}, body


@pytest.fixture
def site() -> Iterator[Site]:
    own = Site({"/a": html(), "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /secret\n")})
    thread = threading.Thread(target=own.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield own
    own.server.shutdown()
    thread.join()
    own.server.server_close()


def collector(folder: Path, **changes: Any) -> Collector:
    settings = {"fetch": True, "private": True, "pause": 0.0, "seconds": 5.0, "cache": str(folder / "kept"), **changes}
    return Collector(Web.model_validate(settings))


@pytest.mark.requirement("R001")
def test_a_page_is_fetched_once_and_read_from_what_is_kept_ever_after(site: Site, tmp_path: Path) -> None:
    page = collector(tmp_path).page(f"{site.base}/a")
    assert page.read_bytes() == b"<html><body>hi</body></html>" and page.suffix == ".html" and page.parent == tmp_path / "kept"
    assert site.asked == ["/robots.txt", "/a"] and all(agent.startswith("chattune/") for agent in site.agents)
    told = files.read_json(page.with_suffix(".json"))
    assert told["address"] == f"{site.base}/a" and told["sha256"] == files.digest_of(page)
    site.pages["/a"] = html(b"<html>other</html>")
    # Also when nothing may be fetched: what is kept is a file like any other.
    assert collector(tmp_path, fetch=False).page(f"{site.base}/a") == page and len(site.asked) == 2
    page.write_bytes(b"changed by somebody")
    assert collector(tmp_path).page(f"{site.base}/a").read_bytes() == b"<html>other</html>"


def test_nothing_is_fetched_unless_it_is_said(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is fetched unless you say so") as caught:
        collector(tmp_path, fetch=False).page(f"{site.base}/a")
    assert "collect.web.fetch=true" in str(caught.value.hint) and not site.asked
    assert not Web().fetch and not Web().private


def test_robots_txt_is_honoured(site: Site, tmp_path: Path) -> None:
    site.pages["/secret/x"] = html()
    with pytest.raises(DataError, match=r"robots\.txt of .* says so"):
        collector(tmp_path).page(f"{site.base}/secret/x")
    assert site.asked == ["/robots.txt"]
    # A redirect is judged where it leads.
    site.pages["/b"] = (302, {"Location": "/secret/x"}, b"")
    with pytest.raises(DataError, match="says so"):
        collector(tmp_path).page(f"{site.base}/b")
    assert "/secret/x" not in site.asked
    site.pages["/robots.txt"] = (200, {}, b"User-agent: chattune\nDisallow: /\n\nUser-agent: *\nAllow: /\n")
    with pytest.raises(DataError, match="says so"):
        collector(tmp_path).page(f"{site.base}/a")
    for status, allowed in ((404, True), (401, False), (403, False), (500, False), (503, False), (429, False)):
        site.pages["/robots.txt"] = (status, {}, b"")
        folder = tmp_path / str(status)
        if allowed:
            assert collector(folder).page(f"{site.base}/a").is_file()
        else:
            with pytest.raises(DataError, match=r"robots\.txt"):
                collector(folder).page(f"{site.base}/a")


def test_requests_to_one_host_keep_their_distance(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/b": html(), "/robots.txt": (200, {}, b"User-agent: *\nCrawl-delay: 7\nDisallow:\n")}
    now, slept = [100.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    own = collector(tmp_path, pause=2.0)
    own.now, own.sleep = lambda: now[0], sleep
    own.page(f"{site.base}/a")
    now[0] += 3.0
    own.page(f"{site.base}/b")
    assert slept == [7.0, 4.0]  # robots.txt, then seven seconds; three of the next seven had passed
    site.pages["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 86400\n")
    with pytest.raises(DataError, match="86400 seconds between requests"):
        collector(tmp_path / "other").page(f"{site.base}/a")


def test_size_redirects_kind_status_and_time_have_limits(site: Site, tmp_path: Path) -> None:
    site.pages |= {
        "/large": html(b"x" * 5000), "/bomb": html(gzip.compress(b"x" * 10**6), **{"Content-Encoding": "gzip"}),
        "/image": (200, {"Content-Type": "image/png"}, b"PNG"), "/gone": (410, {}, b""), "/loop": (302, {"Location": "/loop"}, b""),
        "/odd": html(b"x", **{"Content-Encoding": "br"}), "/ftp": (302, {"Location": "ftp://127.0.0.1/x"}, b""),
    }  # fmt: skip
    for path, told in (
        ("/large", "larger than"), ("/bomb", "unpacks to more"), ("/image", "image/png"), ("/gone", "status 410"),
        ("/loop", "leads on more than 5 times"), ("/odd", "cannot be unpacked"), ("/ftp", "not http or https"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=told) as caught:
            collector(tmp_path, size=4096).page(f"{site.base}{path}")
        assert caught.value.hint and caught.value.path == f"{site.base}{path}"
    assert not (tmp_path / "kept").exists()  # nothing of them is kept
    packed = html(gzip.compress(b"<html>small</html>"), **{"Content-Encoding": "gzip"})
    site.pages |= {"/packed": packed, "/one": (301, {"Location": f"{site.base}/packed"}, b"")}
    assert collector(tmp_path, size=4096).page(f"{site.base}/one").read_bytes() == b"<html>small</html>"


def test_a_host_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(DataError, match="cannot be reached"):
            collector(tmp_path, seconds=0.5).page(f"http://127.0.0.1:{port}/")
        closed.listen()  # takes the connection and never says anything
        with pytest.raises(DataError, match=r"cannot be reached \(cannot be fetched: timed out\)"):
            collector(tmp_path, seconds=0.3).page(f"http://127.0.0.1:{port}/")


def test_pages_of_other_encodings_are_kept_in_utf_8(site: Site, tmp_path: Path) -> None:
    text = "<html><head><meta charset='gb2312'></head><body>你好</body></html>"
    site.pages |= {
        "/told": (200, {"Content-Type": "text/html; charset=GBK"}, text.encode("gb18030")), "/meta": html(text.encode("gb18030")),
        "/unknown": (200, {"Content-Type": "text/plain; charset=klingon"}, "é".encode("latin-1")),
    }  # fmt: skip
    own = collector(tmp_path)
    assert own.page(f"{site.base}/told").read_text("utf-8") == own.page(f"{site.base}/meta").read_text("utf-8") == text
    assert own.page(f"{site.base}/unknown").read_bytes() == b"\xe9" and own.page(f"{site.base}/unknown").suffix == ".txt"


# ---------------------------------------------------------------------------------------------------------- where it may lead

HOSTS = (
    "127.0.0.1", "localhost", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "127.0.0.1.", "LOCALHOST", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "100.64.0.1", "224.0.0.1", "255.255.255.255",
)  # fmt: skip


@pytest.mark.security
def test_nothing_on_this_machine_or_in_a_private_network_is_asked(site: Site, tmp_path: Path) -> None:
    port = site.base.rpartition(":")[2]
    own = collector(tmp_path, private=False, seconds=1.0)
    for host in HOSTS:
        with pytest.raises(DataError) as caught:
            own.page(f"http://{host}:{port}/a")
        assert "no address of the public internet" in caught.value.message or "is not known" in caught.value.message, host
    for source in (
        f"http://user@127.0.0.1:{port}/a", f"http://example.org\\@127.0.0.1:{port}/a", f"http://127.0.0.1:{port}\\a", "file:///etc/passwd",
        f"gopher://127.0.0.1:{port}/", "http://", "http:///a", "http://[::1/a", f"http://127.0.0.1:{port}/a b", "http://a:99999/",
        f"http://127.0.0.1:{port}/\r\nHost: x", "ftp://example.org/x", "http://exa%6dple.org/", "http://a..b\x00/", "data:text/html,hi",
        "http://a/" + "x" * 5000,
    ):  # fmt: skip
        with pytest.raises(DataError):
            own.page(source)
    assert site.asked == []
    collector(tmp_path).page(f"{site.base}/a")  # the control: the same page, where it is allowed
    assert site.asked == ["/robots.txt", "/a"]


@pytest.mark.security
def test_a_name_that_changes_its_address_between_two_answers_leads_nowhere(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that was judged is the one that is connected to: a name server that says something else later changes nothing."""
    port = int(site.base.rpartition(":")[2])
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    asked: list[str] = []
    connected: list[str] = []

    def getaddrinfo(host: str, at: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, at)) for ip in answers[min(len(asked) - 1, 1)]]

    def connect(self: socket.socket, place: Any) -> None:
        connected.append(place[0])
        raise OSError("no route")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(DataError, match="cannot be reached"):
        collector(tmp_path, private=False).page(f"http://rebinding.example:{port}/a")
    assert asked == ["rebinding.example"] and connected == ["93.184.216.34"]
    with pytest.raises(DataError, match="no address of the public internet"):  # the second answer is judged like the first
        collector(tmp_path, private=False).page(f"http://rebinding.example:{port}/a")
    assert connected == ["93.184.216.34"]
    # Of several addresses one that is private is enough.
    answers[:] = [["93.184.216.34", "10.0.0.1"]] * 2
    with pytest.raises(DataError, match=r"10\.0\.0\.1, which is no address"):
        collector(tmp_path, private=False).page(f"http://rebinding.example:{port}/a")


def test_public_addresses_are_public() -> None:
    for text in ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888"):
        assert is_public(text)
    for text in ("127.0.0.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "2002:0a00:0001::", "64:ff9b::0a00:1", "", "x", "192.0.2.1"):
        assert not is_public(text)


def test_what_is_meant_as_an_address() -> None:
    assert all(map(is_address, ("https://a.b/c", "HTTP://a", "file:///x", "ftp://x", "data:text/html,x")))
    assert not any(map(is_address, ("logs.txt", "folder/http.txt", "chitchat", "*.json", "C:/x", "./http:x")))


# ------------------------------------------------------------------------------------------------------- as a source of dialogs


@pytest.mark.requirement("R001")
def test_a_page_that_is_named_is_a_source_and_a_run_is_repeated_without_the_network(site: Site, tmp_path: Path) -> None:
    post = "<article class='message' data-author='{0}'><h4 class='message-name'>{0}</h4><div class='bbWrapper'>{1}</div></article>"
    posts = post.format('ann', 'It is broken. Help?') + post.format('bob', 'Try x.')
    page = f"<html><body>{posts}<a href='/more'>more</a></body></html>"
    site.pages["/thread"] = html(page.encode())
    address = f"{site.base}/thread"
    with pytest.raises(DataError, match="nothing is fetched unless you say so"):
        CollectConfig(sources=(address,)).fingerprint()
    assert site.asked == []
    web = {"fetch": True, "private": True, "pause": 0.0, "cache": str(tmp_path / "kept")}
    config = validate(CollectConfig, {"sources": [address], "web": web})
    before = config.fingerprint()
    (tmp_path / "out").mkdir()
    found = collect(config=config, out=tmp_path / "out")
    assert isinstance(found, Conversations)
    (dialog,) = found.read()
    assert [(m.role, m.content) for m in dialog.messages] == [("user", "It is broken. Help?"), ("assistant", "Try x.")]
    assert Path(dialog.file).parent == tmp_path / "kept" and found.summary["asked"] == [address]
    assert site.asked == ["/robots.txt", "/thread"]  # links are not followed, and what is kept is not asked for again
    site.pages["/thread"] = html(b"<html>other</html>")
    offline = validate(CollectConfig, {"sources": [address], "web": {**web, "fetch": False}})
    assert offline.fingerprint() == before and len(site.asked) == 2
