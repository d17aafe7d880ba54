"""Forum threads and questions with answers, as Markdown or as the raw text of Discourse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import field_validator

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers._chat import dialog_of, moment, threads_of
from chattune.dialogs.readers._roles import RolesByName
from chattune.dialogs.sessions import Said
from chattune.dialogs.text import lines, reading

_DATE = r"(?:on |at |posted )?(?P<date>\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?: ?(?:UTC|Z|[+-]\d\d:?\d\d))?)?)"
_AUTHOR = r"@?(?P<author>[^\s*|:：()#][^*|:：()\n]{0,79}?)"
_KIND = (
    r"(?P<kind>Question|Original post|Post|Reply|Comment|Response|Accepted answer|Answer|提问|问题|主题|楼主|回复|评论|回答|答案)"
)
_HEADERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_AUTHOR} \| {_DATE} \| #\d+$",  # Discourse, raw
        rf"#{{1,6}}\s+{_KIND}\s*(?:#?\d+)?\s*(?:(?:[-–—:：|,]\s*)?(?:(?:posted |written )?(?:by|from)\s+)?{_AUTHOR}"
        rf"(?:\s*[-–—|·,(]?\s*{_DATE}\)?)?)?\s*#*$",
        rf"#{{2,6}}\s+{_AUTHOR}\s*(?:[-–—|·,(]\s*|(?:wrote|commented|replied|said|posted)\s+){_DATE}\)?:?\s*#*$",
        rf"\*\*{_AUTHOR}\s*[:：]?\*\*\s*(?:[-–—|·,(]\s*|(?:wrote|commented|replied|said|posted)\s+)?{_DATE}\)?:?(?P<text>)$",
        rf"\*\*{_AUTHOR}\s*(?:[:：]\*\*|\*\*\s*(?:[:：]|(?:wrote|said|commented|replied|写道)[:：]))\s*(?P<text>.*)$",
    )
)  # fmt: skip
_ANSWERS = ("answer", "accepted answer", "回答", "答案")
_RULE = re.compile(r"(?:-{3,}|\*{3,}|_{3,})\s*$")
_FENCE = re.compile(r"\s{0,3}(?:```|~~~)")
_TITLE = re.compile(r"# +(?P<title>\S.*?)\s*#*$")


class ForumMarkdown(RolesByName):
    """Posts under headings such as ``## Answer by kim``, ``### kim (2024-03-05)``, ``**kim:** …``, or ``kim | 2024-03-05 … |
    #1``.

    Helps when: a forum or a tracker was dumped as Markdown, or a topic of Discourse was fetched as /raw.   Hurts when: headings
    are the text's own: what stands under them is then a post, if they hold a name and a date.
    Cost: one thread in memory.   Start with: the defaults; where headings look otherwise, name them by post=… with a group
    called author.
    Source: the raw form of Discourse, the usual forms of Markdown dumps. A heading of the first level begins a new thread.
    Answers to a question are conversations of their own. Quoted lines are left out and counted.
    """

    post: str | None = setting(None, "regular expression of lines that begin a post, with a group author; none: guessed")
    quotes: bool = setting(False, "whether quoted lines (> …) stay in the text")
    title: bool = setting(True, "whether the thread's title is put before its first post")

    @field_validator("post")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        try:
            if value is not None and "author" not in re.compile(value).groupindex:
                raise ValueError("should hold a group called author: (?P<author>…)")
        except re.error as error:
            raise ValueError(f"should be a regular expression: {error}") from None
        return value

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        count = 0
        for thread in self._threads(path):
            if isinstance(thread, Drop):
                yield thread
                continue
            posts = thread.posts
            if self.title and thread.title and posts and not posts[0][0].text.startswith(thread.title):
                first, answer = posts[0]
                posts[0] = (Said(first.line, first.speaker, f"{thread.title}\n\n{first.text}".rstrip(), first.time), answer)
            metadata = {"title": thread.title} if thread.title else {}
            for conversation, plan in threads_of(posts, thread.left_out, self.names()) if posts else ():
                count += 1
                yield dialog_of(conversation, plan, path, count, self.name, **metadata)

    def score(self, path: Path, head: str) -> float:
        if re.match(r"\s*[<{\[]", head.lstrip("\ufeff")):
            return 0.0
        written = [line for line in head.splitlines()[:2000] if line.strip()]
        found = [match for line in written if (match := self._header(line))]
        if len(found) < 2:
            return 0.0
        raw = sum(match.re is _HEADERS[0] for match in found) >= 2
        marked = re.search(r"\.(?:md|markdown)(?:\.\w{2,3})?$", path.name.lower()) is not None
        return 0.98 if raw else 0.95 if marked else 0.7

    def _header(self, line: str) -> re.Match[str] | None:
        if self.post is not None:
            return re.match(self.post, line)
        return next((match for header in _HEADERS if (match := header.match(line))), None)

    def _threads(self, path: Path) -> Iterator[_Thread | Drop]:
        thread = _Thread(self.record_limit)
        fenced = matter = False
        with reading(path, self.encoding) as file:
            for item in lines(file, self.record_limit, str(path)):
                if isinstance(item, Drop):
                    yield item
                    continue
                number, line = item
                if (number == 1 and line.rstrip() == "---") or matter:
                    # What stands between two rules at the very beginning are settings of the page; its title is among them.
                    matter = number == 1 or line.rstrip() not in ("---", "...")
                    found = re.match(r"title:\s*[\"']?(.*?)[\"']?\s*$", line)
                    thread.title = found[1] if found else thread.title
                    continue
                fenced ^= _FENCE.match(line) is not None
                header = None if fenced else self._header(line.rstrip())
                title = None if fenced or header else _TITLE.match(line)
                if title and (thread.posts or thread.open):
                    thread.close()
                    yield thread
                    thread = _Thread(self.record_limit)
                if title:
                    thread.title = title["title"][:500]
                elif header:
                    thread.begin(number, header)
                elif not thread.open:
                    if line.strip() and not _RULE.match(line):
                        yield Drop("no_speaker", str(path), number, "a line that stands in no post")
                elif not self.quotes and not fenced and re.match(r"\s{0,3}>", line):
                    thread.left_out["quoted_lines"] += 1
                elif not thread.take(line):
                    yield Drop("line_too_long", str(path), number, "the thread goes on beyond the limit; this line is left out")
        thread.close()
        yield thread


class _Thread:
    """A thread while its lines are read."""

    def __init__(self, limit: int) -> None:
        self.title = ""
        self.posts: list[tuple[Said, bool]] = []
        self.left_out: Counter[str] = Counter()
        self.open = False
        self._limit, self._size = limit, 0
        self._line, self._author, self._answers = 0, "", False
        self._time: float | None = None
        self._body: list[str] = []

    def begin(self, number: int, header: re.Match[str]) -> None:
        self.close()
        groups = header.groupdict()
        kind = (groups.get("kind") or "").lower()
        self._answers = kind in _ANSWERS
        self._author = (groups.get("author") or "").strip() or (f"{kind} {len(self.posts)}" if self.posts else kind) or "?"
        self._time = moment((groups.get("date") or "").replace(" UTC", "+00:00"))
        self._line, self._body, self.open = number, [groups.get("text") or ""], True

    def take(self, line: str) -> bool:
        self._size += len(line) + 1
        if self._size > self._limit:
            return False
        self._body.append(line)
        return True

    def close(self) -> None:
        """End the post that is open."""
        if self.open:
            while self._body and (not self._body[-1].strip() or _RULE.match(self._body[-1])):
                self._body.pop()
            text = "\n".join(self._body).strip("\n")
            self.posts.append((Said(self._line, self._author, text, self._time), self._answers))
        self.open = False
