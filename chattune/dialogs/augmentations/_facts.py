"""What the replies of a dialog rest on: words and values that they take from what was said before."""

from __future__ import annotations

from chattune.dialogs.augmentations._text import CONTROL, question, words
from chattune.dialogs.dialog import Dialog
from chattune.features.little_words import LITTLE


def needed(sentence: str, replied: set[str]) -> bool:
    """Whether a sentence must stay where the replies stay.

    It does if it asks, holds a number or a control token, or one of the words that later replies say (`replied`).
    """
    fixed = question(sentence) or CONTROL.search(sentence) is not None or any(map(str.isdigit, sentence))
    return fixed or bool(telling(sentence) & replied)


def replied_after(dialog: Dialog) -> list[set[str]]:
    """For each message the telling words of all replies behind it."""
    found: list[set[str]] = []
    words_after: set[str] = set()
    for message in reversed(dialog.messages):
        found.append(words_after)
        if message.role == "assistant":
            words_after = words_after | telling(message.content)
    return found[::-1]


def telling(text: str) -> set[str]:
    """The words of a text that tell what it is about, cut to their stems in the plainest way."""
    return {word.key[:6] for word in words(text) if word.key not in LITTLE and (len(word.text) > 2 or word.han)}
