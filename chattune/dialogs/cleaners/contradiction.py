"""Dialogs in which the assistant contradicts itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chattune.core.part import setting
from chattune.dialogs.cleaners import Cleaner, dropped
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.near_duplicates import normalised

# What one says of oneself that has one value: (slot, pattern of the normalised text with the group `value`).
_END = r"(?= and | but | so | because | now |$)"
_ONE = tuple(
    (slot, re.compile(pattern))
    for slot, pattern in (
        ("name", r"\bmy name is (?P<value>[a-z]+)"), ("name", r"我(?:的名字)?叫(?P<value>[\u4e00-\u9fff]{2,4})"),
        ("age", r"\bi ?a?m (?P<value>\d{1,3}) years old"), ("age", r"我今?年?(?P<value>\d{1,3})岁"),
        ("home", rf"\bi live in (?P<value>[a-z ]{{2,30}}?){_END}"), ("home", r"我(?:现在)?住在(?P<value>[\u4e00-\u9fff]{2,6})"),
        ("birthday", r"\bmy birthday is (?:on |in )?(?P<value>[a-z0-9 ]{2,20})"),
        ("birthday", r"我的生日是(?P<value>[\u4e00-\u9fff0-9]{2,10})"),
    )
)  # fmt: skip
# What one has, likes, can or is, or not: the groups `no` and `what`.
_BOTH = tuple(
    (slot, re.compile(pattern))
    for slot, pattern in (
        ("have", rf"\bi (?P<no>do ?n[o']?t |never )?(?:have|own) (?:an? |any )?(?P<what>[a-z]{{3,20}}){_END}"),
        ("like", rf"\bi (?P<no>do ?n[o']?t |never )?(?:really )?(?:like|love|enjoy) (?P<what>[a-z ]{{3,24}}?){_END}"),
        ("like", rf"\bi (?P<no>hate|dislike) (?P<what>[a-z ]{{3,24}}?){_END}"),
        ("can", rf"\bi can ?(?P<no>not|t )? ?(?P<what>[a-z ]{{3,24}}?){_END}"),
        ("have", r"我(?P<no>没)?有(?:一?[只个辆台条]|任何)?(?P<what>[\u4e00-\u9fff]{1,4})$"),
        ("like", r"我(?P<no>不)?(?:喜欢|爱)(?P<what>[\u4e00-\u9fff]{1,6})$"),
        ("can", r"我(?P<no>不)?会(?P<what>[\u4e00-\u9fff]{1,6})$"),
    )
)  # fmt: skip
_NOTHING = {  # words that say nothing of their own: what they stand for changes within a talk
    "that", "this", "it", "them", "those", "these", "you", "him", "her", "tell", "see", "say", "not", "spelled", "something", "to",
    "do", "be", "get", "one", "some", "any", "time", "the", "no", "idea", "a lot", "really", "什么", "这个", "那个", "时间", "事",
}  # fmt: skip
_SENTENCE = re.compile(r"[.!?;,\n。！？；，]+")
_YES = re.compile(r"^(?:yes|yeah|yep|sure|of course|i do|i am|是的?|对|会的|有的|当然)\b|^(?:是的|对的|当然|有的)")
_NO = re.compile(r"^(?:no|nope|never|not really|i do ?nt|i am not|im not)\b|^(?:不是?|没有|不会|不行)")
_QUESTION = 6  # characters of a question that can be told from a laugh


class Contradiction(Cleaner):
    """Leave out dialogs in which the assistant says of itself first one thing and then another, or answers one question both ways.

    Looked at are first-person statements that have one value (name, age, home, birthday), those that are affirmed and denied
    (have, like, can), and yes-or-no answers to one and the same question, in English and Chinese. What is not said in such words is
    not seen: this finds contradictions of personas and of canned answers, not of knowledge.
    Helps when: people played roles in the data, or several agents answered in one ticket.
    Hurts when: people correct themselves ("I'm 30, sorry, 31") or change their mind, which is no error.
    Cost: 0.1 ms a dialog.   Start with: the defaults, and a look at the counts.
    Source: the kinds of DECODE (Nie et al. 2021, arXiv:2012.13391) that patterns can tell.
    """

    answers: bool = setting(True, "count yes-or-no answers to the same question, too")

    def clean(self, dialog: Dialog) -> Dialog | Drop:
        values: dict[str, str] = {}
        for slot, value in self._said(dialog):
            if values.setdefault(slot, value) != value:
                kind = slot.partition(":")[0]
                return dropped(dialog, "contradiction", f"the assistant says two things about {kind}")
        return dialog

    def _said(self, dialog: Dialog) -> Iterator[tuple[str, str]]:
        """What the assistant says, as slots with their values."""
        asked = ""
        for message in dialog.messages:
            if message.role != "assistant":
                asked = normalised(message.content)
                continue
            for sentence in _SENTENCE.split(message.content):
                plain = normalised(sentence)
                for slot, pattern in _ONE:
                    if (found := pattern.search(plain)) and found["value"].strip() not in _NOTHING:
                        yield slot, found["value"].strip()
                for slot, pattern in _BOTH:
                    if (found := pattern.search(plain)) and found["what"].strip() not in _NOTHING:
                        yield f"{slot}:{found['what'].strip()}", "no" if found["no"] else "yes"
            answer = normalised(message.content)
            if self.answers and len(asked) >= _QUESTION and (yes := bool(_YES.search(answer))) != bool(_NO.search(answer)):
                yield f"an answer:{asked}", "yes" if yes else "no"
