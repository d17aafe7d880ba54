"""HTML pages for readers: a page within a limit of memory, places by CSS selectors, and the text of an element."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chattune.core.errors import DataError
from chattune.core.files import size
from chattune.dialogs.text import legible, reading

_LINES = "address article aside body center dd details div dl dt fieldset figure footer form header hr li main nav section summary tr"
_PARAGRAPHS = "blockquote h1 h2 h3 h4 h5 h6 ol p pre table ul"
_SPACES = {**dict.fromkeys(_LINES.split(), 1), **dict.fromkeys(_PARAGRAPHS.split(), 2)}  # line ends before and behind an element
_SILENT = frozenset("head script style noscript template svg iframe object select button audio video".split())  # noqa: SIM905
_BLANKS = re.compile(r"[ \t\r\n\f]+")


class Page:
    """A parsed page; elements are lxml's."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def all(self, selector: str, within: Any = None) -> list[Any]:
        """The elements that a CSS selector finds, in order."""
        return list(_compiled(selector)(self.root if within is None else within))

    def first(self, selector: str, within: Any = None) -> Any:
        """The first of them, or nothing."""
        return next(iter(self.all(selector, within)), None)

    def line(self, node: Any) -> int:
        """The line (from 1) on which an element begins."""
        return max(1, node.sourceline or 1)


def page_of(path: Path, encoding: str, limit: int) -> Page:
    """The page in a file; a `DataError` where it is longer than `limit` characters or holds no element."""
    with reading(path, encoding) as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise DataError(
            f"is a page of more than {size(limit)}.", path=str(path), rule="a page that fits in memory",
            hint="Split it, or raise collect.format.record_limit.",
        )
    return parsed(legible(text, path, encoding), path)


def parsed(text: str, path: Path) -> Page:
    """The page that a text is."""
    from lxml import etree, html

    # Bytes of a known encoding: a text with a declaration of its own would be refused.
    parser = html.HTMLParser(encoding="utf-8", recover=True, no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = html.document_fromstring(text.replace("\0", "\ufffd").encode("utf-8", "replace"), parser=parser)
    except (etree.LxmlError, ValueError) as error:
        raise DataError(
            f"cannot be read as HTML: {' '.join(str(error).split())[:160]}.", path=str(path), rule="an HTML page",
            hint="Leave it out of collect.sources, or name another format.",
        ) from None
    return Page(root)


def checked(selector: str) -> str:
    """`selector` itself where it is a CSS selector; else a `ValueError` for settings to tell."""
    from cssselect import SelectorError

    try:
        _compiled(selector)
    except SelectorError as error:
        raise ValueError(f"should be a CSS selector: {error}") from None
    return selector


def text_of(node: Any, skip: Iterable[Any] = ()) -> str:
    """The text of an element, blocks and line breaks as lines, code as it stands; without the elements in `skip` and what they hold."""
    left_out = {*map(id, skip)}
    text = _Text()
    # (element, whether it ends here, whether white space stays around it)
    stack: list[tuple[Any, bool, bool]] = [(node, False, False)]
    while stack:
        one, ends, kept = stack.pop()
        tag = one.tag if isinstance(one.tag, str) else ""
        space = _SPACES.get(tag, 0)
        if ends:
            text.lines(space)
            if one is not node:
                text.add(one.tail, kept)
            continue
        stack.append((one, True, kept))
        if tag in _SILENT or id(one) in left_out or not tag:
            continue
        text.lines(space)
        if tag == "br":
            text.add("\n", True)
        elif tag in ("td", "th") and one.getprevious() is not None:
            text.add("\t", True)
        elif tag == "li":
            text.add("- ", True)
        elif tag == "img" and "emoji" in one.get("class", ""):
            text.add(one.get("alt"), True)
        text.add(one.text, kept or tag == "pre")
        stack.extend((child, False, kept or tag == "pre") for child in reversed(one))
    return text.whole()


class _Text:
    """Text that is put together from pieces; between blocks there are as many line ends as they ask for, not more."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._ends = 2  # line ends at the end of what is there; nothing stands before the first line

    def lines(self, count: int) -> None:
        """See that the text so far ends with at least `count` line ends."""
        if count > self._ends:
            self._parts.append("\n" * (count - self._ends))
            self._ends = count

    def add(self, text: str | None, kept: bool) -> None:
        """More text; white space stays as it is (`kept`) or becomes one space, and none at the beginning of a line."""
        if text and not kept:
            text = _BLANKS.sub(" ", text)
            text = text.lstrip(" ") if self._ends else text
        if text:
            self._parts.append(text)
            bare = text.rstrip(" ")
            ends = len(bare) - len(bare.rstrip("\n"))
            self._ends = self._ends + ends if ends == len(bare) and bare else ends

    def whole(self) -> str:
        text = re.sub(r"[ \t]+(?=\n)", "", "".join(self._parts))
        return re.sub(r"\n{3,}", "\n\n", text).strip("\n").rstrip(" ")


@functools.lru_cache(maxsize=256)
def _compiled(selector: str) -> Any:
    from lxml.cssselect import CSSSelector

    return CSSSelector(selector, translator="html")

