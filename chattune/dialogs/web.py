"""The web collector: pages that the user names by their addresses, fetched once, with manners, and kept.

Off unless ``collect.web.fetch`` says otherwise. Each page is asked for by name: nothing is followed but redirects. robots.txt
is honoured (RFC 9309, with Crawl-delay), requests to one host keep a distance, and what is fetched has limits of size, time and
kind. Only http and https are spoken, and only to addresses on the public internet: a name is resolved once, every address that
it has is judged, and the connection goes to one of those, so that no second answer of the name server can lead elsewhere. What
was fetched is kept in a folder and read from there ever after: a run can be repeated, and its fingerprint is that of the bytes
kept.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from chattune.core import files
from chattune.core.errors import DataError
from chattune.core.files import size
from chattune.core.part import Settings, setting
from chattune.core.progress import talk

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse
    from urllib.robotparser import RobotFileParser

ROBOTS = 500 * 2**10  # bytes of robots.txt that are looked at, as RFC 9309 asks at the least
LONGEST_DELAY = 60.0  # seconds between requests that a host may ask for; a host that wants more is not asked at all
_KINDS = re.compile(r"text/|application/(?:json|xml|xhtml\+xml|x-ndjson|jsonl|mbox|ld\+json)\b")
_ENDINGS = {
    "text/html": ".html", "application/xhtml+xml": ".html", "application/json": ".json", "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl", "text/markdown": ".md", "text/csv": ".csv", "application/mbox": ".mbox",
}  # fmt: skip
_META = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_REDIRECTS = (301, 302, 303, 307, 308)


class Web(Settings):
    """How pages are fetched."""

    fetch: bool = setting(False, "whether sources that begin with http:// or https:// are fetched; off, they are refused")
    cache: str = setting("web-cache", "folder in which pages are kept; what is there is never fetched again")
    pause: float = setting(1.0, "seconds between requests to one host; longer if robots.txt says so", low=0.0, high=3600.0)
    size: int = setting(16 * 2**20, "bytes of the largest page", low=1024, high=2**31)
    seconds: float = setting(30.0, "seconds after which a page that has not come is given up", above=0.0, high=3600.0)
    redirects: int = setting(5, "redirects that are followed for one page", low=0, high=20)
    private: bool = setting(False, "whether addresses of this machine and of private networks may be asked, too")


def is_address(source: str) -> bool:
    """Whether a source is meant as an address of the web."""
    return re.match(r"(?:https?|ftp|file|gopher|data|javascript):", source, re.IGNORECASE) is not None


@dataclass
class Collector:
    """Fetches pages one after the other; knows the robots.txt of each host and when it was asked last."""

    web: Web
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _robots: dict[str, RobotFileParser | str] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)

    def page(self, source: str) -> Path:
        """The file that holds the page at an address: kept from before, or fetched now. A `DataError` says why that cannot be."""
        web, address = self.web, _split(source)
        kept = Path(web.cache).expanduser() / f"{_name(source)}.json"
        if kept.is_file():
            told = files.read_json(kept)
            page = kept.with_name(str(told.get("file"))) if isinstance(told, dict) else kept
            if page != kept and page.is_file() and files.digest_of(page) == told.get("sha256"):
                return page
        if not web.fetch:
            raise DataError(
                "is an address of the web, and nothing is fetched unless you say so.", path=source[:500], value=source[:500],
                rule="collect.web.fetch=true", hint="Set collect.web.fetch=true, or save the page and name the file.",
            )
        final, data, headers = self._get(address, source)
        kind = headers.get("content-type", "text/html").partition(";")[0].strip().lower()
        if not _KINDS.match(kind):
            raise _refused(source, f"is {kind[:60]}, not text", "a page of text", "Leave it out of collect.sources.")
        data, charset = _utf8(data, headers.get("content-type", ""), kind)
        page = kept.with_name(f"{kept.stem}{_ENDINGS.get(kind, '.txt')}")
        page.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(page, data)
        told = {
            "address": source, "final": urlunsplit(final), "file": page.name,
            "bytes": len(data), "sha256": sha256(data).hexdigest(),
            "content_type": headers.get("content-type", ""), "written_in": charset,
            "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        files.write_json(kept, told)
        talk().print(f"fetch    {source[:200]} → {page} ({size(len(data))})", markup=False)
        return page

    def _get(self, address: SplitResult, source: str) -> tuple[SplitResult, bytes, dict[str, str]]:
        """Where a page was found in the end, its bytes and its headers."""
        for _ in range(self.web.redirects + 1):
            self._permitted(address, source)
            self._wait(address)
            status, data, headers = _request(address, self.web, source, self.web.size)
            if status in _REDIRECTS and headers.get("location"):
                address = _split(urljoin(urlunsplit(address), headers["location"]), source)
                continue
            if status != 200:
                raise _refused(source, f"is answered by status {status}", "status 200", "Does it need a login?")
            return address, data, headers
        told = f"leads on more than {self.web.redirects} times"
        raise _refused(source, told, "fewer redirects", "Name the address that it leads to.")

    def _permitted(self, address: SplitResult, source: str) -> None:
        """An error where robots.txt of the host asks that this page is left alone."""
        host = f"{address.scheme}://{address.netloc}"
        robots = self._robots.get(host)
        if robots is None:
            robots = self._robots[host] = self._read_robots(address, source)
        if isinstance(robots, str):
            raise _refused(source, robots, "robots.txt that can be read", "Ask again later, or leave the page out.")
        if not robots.can_fetch("chattune", urlunsplit(address)):
            raise _refused(
                source, f"is not to be fetched: robots.txt of {address.netloc} says so", "leave by robots.txt",
                "Leave it out, or ask those who run the site for their data.",
            )
        delay = robots.crawl_delay("chattune")
        if delay is not None and float(delay) > LONGEST_DELAY:
            told = f"is not fetched: its host asks for {delay} seconds between requests"
            raise _refused(source, told, f"at most {LONGEST_DELAY:.0f}", "Save the page by hand and name the file.")

    def _read_robots(self, address: SplitResult, source: str) -> RobotFileParser | str:
        """What robots.txt of a host says; or why nothing may be fetched there."""
        from urllib.robotparser import RobotFileParser

        robots = RobotFileParser()
        place = address._replace(path="/robots.txt", query="")
        for _ in range(6):
            self._wait(place)
            try:
                status, data, headers = _request(place, self.web, source, ROBOTS, cut=True)
            except _Unreachable as error:
                return f"is not fetched: robots.txt of {place.netloc} cannot be reached ({error.message.rstrip('.')})"
            if status in _REDIRECTS and headers.get("location"):
                place = _split(urljoin(urlunsplit(place), headers["location"]), source)
                continue
            if status >= 500 or status == 429:
                return f"is not fetched: robots.txt of {place.netloc} is answered by status {status}"
            robots.parse(data.decode("utf-8", "replace").lstrip("\ufeff").splitlines() if status == 200 else [])
            if status in (401, 403):
                robots.parse(["User-agent: *", "Disallow: /"])
            return robots
        return f"is not fetched: robots.txt of {address.netloc} leads on and on"

    def _wait(self, address: SplitResult) -> None:
        """Keep the distance between two requests to one host."""
        host = address.hostname or ""
        robots = self._robots.get(f"{address.scheme}://{address.netloc}")
        delay = None if robots is None or isinstance(robots, str) else robots.crawl_delay("chattune")
        pause = max(self.web.pause, min(float(delay or 0), LONGEST_DELAY))
        if host in self._asked and (left := self._asked[host] + pause - self.now()) > 0:
            self.sleep(left)
        self._asked[host] = self.now()


class _Unreachable(DataError):
    """A host that does not answer."""


def _refused(source: str, what: str, rule: str, hint: str) -> DataError:
    return DataError(f"{what}.", path=source[:500], value=source[:500], rule=rule, hint=hint)


def _split(text: str, source: str | None = None) -> SplitResult:
    """An address in its parts, in the one reading that everybody shares; whatever could be read in two ways is refused."""
    source = text if source is None else source
    hint = "Write it like https://example.org/thread/1."
    if re.search(r"[\x00-\x20\x7f\\]", text) or len(text) > 4000:
        raise _refused(source, "holds characters that no address may hold", "no spaces, backslashes and control characters", hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _refused(source, "is no address", "http or https, a host, a path", hint) from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise _refused(source, f"is not http or https ({parts.scheme[:20] or 'nothing'})", "http or https", hint)
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise _refused(source, "holds a user name or a password", "an address without them", hint)
    host = parts.hostname
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise _refused(source, "has a host that is no name", "a host name", hint) from None
    if not re.fullmatch(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}", host):
        raise _refused(source, "has a host that is no name", "a host name", hint)
    shown = f"[{host}]" if ":" in host else host
    netloc = shown if port is None else f"{shown}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return SplitResult(parts.scheme.lower(), netloc, path, quote(parts.query, safe="/%:@!$&'()*+,;=~-._?"), "")


def _name(source: str) -> str:
    """The name under which a page is kept: readable, and different for every address."""
    bare = re.sub(r"^https?://", "", source, flags=re.IGNORECASE)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", bare).strip("-.")[:60].rstrip("-.")
    return f"{readable or 'page'}-{sha256(source.encode('utf-8', 'replace')).hexdigest()[:16]}"


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet, also where it stands for another one within it."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    within: list[Any] = [found]
    if isinstance(found, ipaddress.IPv6Address):
        within += [inner for inner in (found.ipv4_mapped, found.sixtofour, *(found.teredo or ())) if inner is not None]
        if found in ipaddress.ip_network("64:ff9b::/96") or int(found) >> 32 == 0:
            within.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return all(one.is_global and not one.is_multicast and not one.is_reserved for one in within)


def _addresses(host: str, port: int, web: Web, source: str) -> list[tuple[Any, ...]]:
    """Where a host can be reached; an error where any of its addresses is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Unreachable(f"its host {host} is not known: {error}.", path=source, rule="a host that can be found",
                           hint="Is there a connection?") from None  # fmt: skip
    inside = [str(one[4][0]) for one in found if not is_public(str(one[4][0]))]
    if inside and not web.private:
        raise _refused(
            source, f"leads to {inside[0]}, which is no address of the public internet", "public addresses",
            "Where that is meant, say collect.web.private=true.",
        )
    return [(one[0], one[4]) for one in found]


def _request(address: SplitResult, web: Web, source: str, limit: int, *, cut: bool = False) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one request; `cut`: of a longer body the beginning is taken."""
    from http.client import HTTPException

    port = address.port or (443 if address.scheme == "https" else 80)
    places = _addresses(address.hostname or "", port, web, source)
    until = time.monotonic() + web.seconds
    connection = _connection(address, port, places, web.seconds)
    try:
        connection.request("GET", address.path + (f"?{address.query}" if address.query else ""), headers=_headers())
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status in _REDIRECTS:
            return response.status, b"", headers
        data = _body(response, limit, until, source, cut)
    except (OSError, HTTPException, ValueError) as error:
        told = " ".join(str(error).split())[:160] or type(error).__name__
        raise _Unreachable(f"cannot be fetched: {told}.", path=source, rule="a host that answers",
                           hint="Does the page open in a browser?") from None  # fmt: skip
    finally:
        connection.close()
    return response.status, _unpacked(data, headers.get("content-encoding", ""), limit, source, cut), headers


def _headers() -> dict[str, str]:
    from chattune import __version__

    return {
        "User-Agent": f"chattune/{__version__} (collects pages that its user names; honours robots.txt)",
        "Accept": "text/html,text/plain,application/json;q=0.9,*/*;q=0.1", "Accept-Encoding": "identity", "Connection": "close",
    }  # fmt: skip


def _connection(address: SplitResult, port: int, places: list[tuple[Any, ...]], seconds: float) -> HTTPConnection:
    """A connection that goes to one of the addresses that were judged, whatever the name server says meanwhile."""
    import ssl
    from http.client import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def connect(self) -> None:
            self.sock = _opened(places, seconds)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            self.sock = context.wrap_socket(_opened(places, seconds), server_hostname=self.host)

    host = address.hostname or ""
    if address.scheme == "http":
        return Plain(host, port)
    context = ssl.create_default_context()
    return Secure(host, port)


def _opened(places: list[tuple[Any, ...]], seconds: float) -> socket.socket:
    """A socket that is connected to the first of some addresses that answers."""
    last = OSError("no address")
    for family, place in places:
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.settimeout(seconds)
        try:
            opened.connect(place)
        except OSError as error:
            opened.close()
            last = error
        else:
            return opened
    raise last


def _body(response: HTTPResponse, limit: int, until: float, source: str, cut: bool) -> bytes:
    pieces: list[bytes] = []
    count = 0
    while piece := response.read1(2**16):
        pieces.append(piece)
        count += len(piece)
        if count > limit:
            if cut:
                break
            raise _refused(source, f"is larger than {size(limit)}", f"a page of at most {size(limit)}", "Raise collect.web.size.")
        if time.monotonic() > until:
            raise TimeoutError("it comes too slowly")
    return b"".join(pieces)[: limit if cut else None]


def _unpacked(data: bytes, encoding: str, limit: int, source: str, cut: bool) -> bytes:
    """A body that a host packs although it was asked not to."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return data
    try:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise zlib.error(f"packed by {encoding[:20]}")
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        found = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise _refused(source, f"cannot be unpacked: {error}", "a plain page", "Save it by hand and name the file.") from None
    if len(found) > limit and not cut:
        told = f"unpacks to more than {size(limit)}"
        raise _refused(source, told, f"a page of at most {size(limit)}", "Raise collect.web.size.")
    return found[:limit]


def _utf8(data: bytes, content_type: str, kind: str) -> tuple[bytes, str]:
    """A page in UTF-8, and what it was written in. A page that says nothing of it stays as it is."""
    import codecs

    told = re.search(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", content_type, re.IGNORECASE)
    marked = _META.search(data[:4096]) if kind.endswith(("html", "xhtml+xml")) else None
    name = told[1] if told else marked[1].decode("ascii") if marked else "utf-8"
    try:
        known = codecs.lookup(name).name
        if known in ("utf-8", "ascii", "utf-8-sig"):
            return data, known
        return data.decode("gb18030" if known in ("gb2312", "gbk") else known, "replace").encode("utf-8", "replace"), known
    except (LookupError, UnicodeError, ValueError, TypeError):
        return data, "unknown"
