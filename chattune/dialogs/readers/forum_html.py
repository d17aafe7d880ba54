"""Forum threads and questions with answers, as HTML pages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import field_validator

from chattune.core.errors import DataError
from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers._chat import dialog_of, moment, threads_of
from chattune.dialogs.readers._html import Page, checked, page_of, parsed, text_of
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.sessions import Said

_HEAD = 2**16


@dataclass(frozen=True)
class _Layout:
    """Where posts, their authors and their texts stand in the pages of one kind of forum, as CSS selectors.

    `quote`: what a post repeats of another one. `answers`: posts that answer the first one each by itself, on a page of a
    question.
    """

    name: str
    post: str
    author: tuple[str, ...]
    text: tuple[str, ...]
    quote: str = "blockquote"
    answers: str = ""


_LAYOUTS = (
    _Layout(
        "Stack Exchange", "#question, .question[data-questionid], .answer[data-answerid], div.answer",
        ("div.post-signature:last-of-type .user-details a", ".user-details [itemprop=name]", ".user-details a", ".user-details"),
        (".js-post-body", ".s-prose", ".post-text"), "", ".answer",
    ),
    _Layout(
        "Discourse",
        "div.crawler-post, article[data-post-id], article[data-user-id], .topic-post > article, div[id^=post_][itemprop=comment]",
        (".creator [itemprop=name]", ".names .username a", ".names .username", "[itemprop=author] [itemprop=name]", ".creator",
         ".username"),
        (".cooked", ".post[itemprop=text]", "[itemprop=text]"), "aside.quote, blockquote",
    ),
    _Layout(
        "XenForo", "article.message, li.message", (".message-name", "h3 .username", ".username"), (".bbWrapper", ".messageText"),
        "blockquote, .bbCodeQuote, .bbCodeBlock--quote",
    ),
    _Layout(
        "vBulletin", "li.postcontainer, li.postbit, table[id^=post], div.b-post", (".bigusername", ".username", ".b-userinfo a"),
        ("[id^=post_message_]", ".postcontent", ".b-post__content"), "blockquote, .bbcode_quote, .bbcode_container",
    ),
    _Layout(
        "Discuz", "div[id^=post_], table.plhin", (".authi a.xw1", ".pls .authi a", ".authi a"), ("td.t_f", ".t_f"),
        ".quote, blockquote",
    ),
    _Layout("SMF", "div.post_wrapper", (".poster h4", ".poster"), (".inner", ".post"), "blockquote, .quoteheader, .quotefooter"),
    _Layout(
        "phpBB", "div.post, tr.post",
        (".postprofile .username", ".postprofile .username-coloured", ".username", ".username-coloured", ".postauthor",
         ".author strong", ".author"),
        (".content", ".postbody"),
    ),
    _Layout(
        "schema.org",
        "[itemtype*='DiscussionForumPosting'], [itemtype$='/Comment'], [itemtype$='/Answer'], [itemtype$='/Question']",
        ("[itemprop=author] [itemprop=name]", "[itemprop=author]"), ("[itemprop=text]", "[itemprop=articleBody]"), "blockquote",
        "[itemtype$='/Answer']",
    ),
    _Layout(
        "articles", "article, .comment", (".author", ".username", ".user", "[rel=author]", "cite"),
        (".content", ".body", ".text", ".comment-body"),
    ),
)  # fmt: skip


class ForumHTML(RolesByName):
    """A page of a forum: posts with authors. A thread is a conversation; of a page of answers each answer is one with the
    question.

    Helps when: threads of phpBB, Discourse, vBulletin, XenForo, SMF, Discuz or Stack Exchange were saved or crawled.   Hurts
    when: a page is built by a script after it is loaded: save it from the browser.
    Cost: the whole page in memory, 20 times its size.   Start with: the defaults; where a page is not understood, name the
    selectors.
    Source: the usual markup of these programs and schema.org; CSS selectors by lxml and cssselect. Quotations are left out and
    counted. Who opens a thread asks in it; the others answer, or those with a badge (staff=…) or a known name do.
    """

    post: str | None = setting(None, "CSS selector of a post; none: of the known kinds of forum, the one that finds most")
    author: str | None = setting(None, "CSS selector, within a post, of its author's name")
    text: str | None = setting(None, "CSS selector, within a post, of its text; none: as the kind of forum has it, or all of it")
    quote: str | None = setting(None, "CSS selector, within a text, of what it quotes")
    staff: str | None = setting(None, "CSS selector that finds something, such as a badge, in the posts of those who answer")
    answers: str | None = setting(None, "CSS selector of posts that answer the first one each by itself")
    quotes: bool = setting(False, "whether quotations stay in the text")
    title: bool = setting(True, "whether the page's title is put before the first post, where that does not begin with it")

    @field_validator("post", "author", "text", "quote", "staff", "answers")
    @classmethod
    def _selector(cls, value: str | None) -> str | None:
        return None if value is None else checked(value)

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        page = page_of(path, self.encoding, self.record_limit)
        layout = self._layout(page)
        left_out: Counter[str] = Counter()
        found = _Found(page, layout)
        posts = [post for node in found.posts() if (post := self._post(found, node, left_out)) is not None]
        if not posts:
            raise DataError(
                "holds no posts that could be found.", path=str(path), rule="posts of a known kind of forum",
                hint="Name CSS selectors: collect.format.post=… collect.format.author=… collect.format.text=….",
            )
        told = _title(page)
        if self.title and told and not posts[0][0].text.startswith(told):
            first, answer = posts[0]
            posts[0] = (Said(first.line, first.speaker, f"{told}\n\n{first.text}", first.time, role=first.role), answer)
        metadata = {"layout": layout.name, **({"title": told} if told else {})}
        for number, (conversation, plan) in enumerate(threads_of(posts, left_out, self.names()), 1):
            yield dialog_of(conversation, plan, path, number, self.name, **metadata)

    def score(self, path: Path, head: str) -> float:
        head = head[:_HEAD]
        if not re.match(r"\s*<(?:!doctype html|html|head|body|div|article|!--)", head.lstrip("\ufeff"), re.IGNORECASE):
            return 0.0
        try:
            page = parsed(head, path)
        except DataError:
            return 0.0
        layout = self._layout(page)
        count = len(_Found(page, layout).posts())
        # The beginning of a page may hold nothing but styles; no other reader takes pages that it does not know.
        return 0.31 if count == 0 else 0.6 if count == 1 or layout.name == "articles" else 0.9

    def _layout(self, page: Page) -> _Layout:
        if self.post is None:
            found = max(_LAYOUTS, key=lambda layout: len(_Found(page, layout).posts()))
        else:
            found = _Layout("as set", self.post, tuple(dict.fromkeys(name for one in _LAYOUTS for name in one.author)), ())
        return _Layout(
            found.name, found.post, found.author if self.author is None else (self.author,),
            found.text if self.text is None else (self.text,), found.quote if self.quote is None else self.quote,
            found.answers if self.answers is None else self.answers,
        )  # fmt: skip

    def _post(self, found: _Found, node: Any, left_out: Counter[str]) -> tuple[Said, bool] | None:
        page, layout = found.page, found.layout
        text = found.own(layout.text, node) if layout.text else node
        quotes = [] if self.quotes or not layout.quote else [one for one in page.all(layout.quote, text) if one is not text]
        author = found.own(layout.author, node)
        inner = [other for other in found.nodes if other is not node] if text is node else []
        words = text_of(text, [*quotes, *inner, *([author] if text is node and author is not None else [])]).strip()
        left_out["quote"] += len(quotes)
        if not words:
            left_out["no_text"] += 1
            return None
        name = " ".join(text_of(author).split()) if author is not None else ""
        time = page.first("time[datetime]", node)
        role = "assistant" if self.staff is not None and page.first(self.staff, node) is not None else ""
        when = moment(time.get("datetime")) if time is not None else None
        said = Said(page.line(node), name[:200] or "?", words, when, role=role)
        return said, node in found.answers


class _Found:
    """The elements of a page that a layout takes for posts."""

    def __init__(self, page: Page, layout: _Layout) -> None:
        self.page, self.layout = page, layout
        self.nodes = page.all(layout.post)
        self._known = set(self.nodes)  # elements are equal only to themselves
        self.answers = set(page.all(layout.answers)) if layout.answers else set()

    def posts(self) -> list[Any]:
        """Those that hold a text of their own. One that stands around others is no post for their sake."""
        return [node for node in self.nodes if not self.layout.text or self.own(self.layout.text, node) is not None]

    def own(self, selectors: tuple[str, ...], node: Any) -> Any:
        """The first element in a post that the first of some selectors finds outside the posts within it."""
        for found in (found for selector in selectors for found in self.page.all(selector, node)):
            above = found
            while above is not node and above is not None and above not in self._known:
                above = above.getparent()
            if above is node and found is not node:
                return found
        return None


def _title(page: Page) -> str:
    for selector in ("h1 a", "h1", "#topic-title", ".topic-title", "h2.topic-title", "title"):
        node = page.first(selector)
        if node is not None and (words := " ".join(str(node.text_content()).split())):
            return words[:500]
    return ""

