"""HTML as text."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Literal

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, rewritten
from chattune.dialogs.cleaners._text import outside_code, settled, words
from chattune.dialogs.dialog import Dialog, Drop

_BLOCKS = words(
    "article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
    "html "
    "li main nav ol p section summary table tbody tfoot thead tr ul"
)
_INLINE = words(
    "a abbr b bdi bdo big caption cite code col colgroup del em font i ins kbd label mark pre q s samp small span strike strong "
    "sub "
    "sup td th time tt u var"
)
_SILENT = words("head iframe noscript object script select style svg template title video audio")  # with what stands within
_SINGLE = words("br hr img input link meta wbr")
_KNOWN = frozenset(_BLOCKS + _INLINE + _SILENT + _SINGLE)
_NAMES = "|".join(sorted(_KNOWN, key=len, reverse=True))
_TAG = re.compile(rf"<(?P<close>/?)(?P<name>{_NAMES})(?P<rest>(?:\s[^<>]{{0,4000}})?)/?>", re.I)
_ATTRIBUTES = re.compile(r"\s*(?:[\w:.@-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+))?\s*)*/?\s*")
_NO_TAG = re.compile(rf"<(?!/?(?:{_NAMES})(?:\s[^<>]{{0,4000}})?/?>|!--|!doctype\b)", re.I)
# What a page is made of, and what hardly stands in a message but to be shown.
_WHOLE = re.compile(r"<(?:!doctype\s+html|html|head|body|script|style|form|input|svg|link|meta|iframe|object|canvas|button)\b", re.I)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)|<!doctype[^<>]{0,500}>", re.I | re.S)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# A tag that is talked about: in quotation marks, or called a tag.
_MENTIONED = re.compile(
    r"[\"'”’」』)]?\s{0,2}(?:tags?|elements?|attributes?)\b|[\"'”’」』]?\s?(?:标签|元素|标记)|[\"'”’」』]", re.I
)
_BLANKS = re.compile(r"[ \t\r\n\f]+")
_LINES = re.compile(r"(?<![ \t])[ \t]*\n[ \t]*\n\s*")


class Html(Cleaner):
    """Text in place of HTML: tags and entities go, lines and list items stay, `<pre>` and `<code>` become code in backticks.

    A message is HTML where known tags stand in it as markup: closed, or such as `<br>` and `<p>`. `a < b`, `vector<int>`, a tag
    that is talked about ("the <br> tag"), code in backticks and a page that is shown after some prose stay as they are.
    Helps when: conversations come from forums, mail or crawled pages.
    Hurts when: HTML itself is what people ask for and it stands there without backticks: say ``pages: false``, or leave this out.
    Cost: 5 µs a message without tags, 0.1 ms a kilobyte with them.   Start with: the defaults.
    Source: HTML Living Standard for elements and named characters; Python's html.parser.
    """

    links: Literal["text", "address", "both"] = setting("text", "what a link leaves: its text, its address, or both")
    pages: bool = setting(True, "whether a message that is a whole HTML page becomes text, too")
    entities: bool = setting(True, "whether entities (&amp;) become characters in messages that hold no tags, too")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        return rewritten(dialog, lambda text: settled(self._rewritten, text))

    def _rewritten(self, text: str) -> str:
        return outside_code(text, self._plain) if "<" in text or "&" in text else text

    def _plain(self, text: str) -> str:
        if self._is_markup(text):
            return self._text(text)
        return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if self.entities and not _TAG.search(text) else text

    def _is_markup(self, text: str) -> bool:
        page = _WHOLE.search(text)
        if page and (not self.pages or text[: page.start()].strip()):
            return False
        opened: set[str] = set()
        sure = False
        for tag in _TAG.finditer(text):
            name = tag["name"].lower()
            if not _ATTRIBUTES.fullmatch(tag["rest"]):
                continue
            if _MENTIONED.match(text[tag.end() : tag.end() + 16]):
                return False
            if tag["close"]:
                sure |= name in opened
            else:
                opened.add(name)
                sure |= name in ("br", "hr", "p") or (name in _SINGLE and "=" in tag["rest"])
        return sure

    def _text(self, text: str) -> str:
        reader = _Reader(self.links)
        reader.feed(_NO_TAG.sub("&lt;", _COMMENT.sub("", text)))
        reader.close()
        return reader.text()


class _Reader(HTMLParser):
    def __init__(self, links: str) -> None:
        super().__init__(convert_charrefs=True)
        self._links = links
        self._pieces: list[str] = []
        self._silent: list[str] = []
        self._verbatim = 0  # within so many <pre>
        self._addresses: list[str] = []

    def text(self) -> str:
        """What was read."""
        return outside_code("".join(self._pieces), lambda text: _LINES.sub("\n\n", text)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag == "br":
            self._say("\n")
        elif tag == "pre":
            self._verbatim += 1
            self._line("\n```\n")
        elif tag == "li":
            self._line("\n- ")
        elif tag == "p":
            self._line("\n\n")
        elif tag in _BLOCKS or tag == "hr":
            self._line("\n")
        elif tag == "code" and not self._verbatim:
            self._say("`")
        elif tag in ("td", "th"):
            self._say(" | " if self._pieces and not self._pieces[-1].endswith("\n") else "")
        elif tag == "img":
            self._say(own.get("alt", ""))
        elif tag == "a":
            self._addresses.append(own.get("href", ""))
            if self._links == "address" and own.get("href", "").startswith("http"):
                self._say(own["href"])
                self._silent.append("a")

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag in self._silent:
                del self._silent[self._silent.index(tag) :]
            if tag != "a":
                return
        if tag == "pre" and self._verbatim:
            self._verbatim -= 1
            self._line("\n```\n")
        elif tag == "code" and not self._verbatim:
            self._say("`")
        elif tag in ("p", "ul", "ol", "table"):
            self._line("\n\n")
        elif tag in _BLOCKS:
            self._line("\n")
        elif tag == "a" and self._addresses:
            address = self._addresses.pop()
            if self._links == "both" and address.startswith("http"):
                self._say(f" ({address})")

    def handle_data(self, data: str) -> None:
        if not self._verbatim:
            data = _BLANKS.sub(" ", data)
            if not self._pieces or self._pieces[-1].endswith(("\n", " ")):
                data = data.lstrip(" ")
        self._say(data)

    def _say(self, text: str) -> None:
        if text and not self._silent:
            self._pieces.append(text)

    def _line(self, text: str) -> None:
        """Begin a line, unless one has begun."""
        before = "".join(self._pieces[-2:])
        missing = text.lstrip("\n")
        wanted = len(text) - len(missing) - (len(before) - len(before.rstrip("\n")))
        self._say("\n" * (wanted if before else 0) + missing)
