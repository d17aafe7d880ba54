"""Control tokens, and the escape that keeps texts from holding one. Light: configuration imports it, and no numerical library.

Control tokens are matched on the raw string, before normalisation. Text is escaped so that it cannot hold one (a mark goes
between ``<`` and ``|``), and the tokenizer's normaliser, which sees only what is not a control token, takes the escape out
again. The chat template escapes in the same way, so transformers gives the same ids for the same messages.
"""

from __future__ import annotations

from chattune.core.errors import DataError

TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)  # what a Hugging Face directory needs of us
GENERATION = "generation_config.json"  # beside a tokenizer from elsewhere: which tokens end a turn, which pad, how its maker samples

CONTROL = ("pad", "begin", "end", "system", "user", "assistant", "tool")  # ids 0 … 6, in this order
SMALLEST = len(CONTROL) + 256  # control tokens and the bytes; merges come on top

# U+FDD0 is a noncharacter: Unicode keeps it for internal use such as this. Texts that hold it are escaped and come back whole.
MARK = "\ufdd0"
MARK_ITSELF, MARK_BREAK = MARK + "0", MARK + "1"


def control_token(name: str) -> str:
    """``"user"`` → ``"<|user|>"``."""
    return f"<|{name}|>"


def escaped(text: str) -> str:
    """`text` without any ``<|``, so that no control token can be found in it; the normaliser undoes it exactly."""
    if not text.isascii():
        refuse_surrogates(text)
        text = text.replace(MARK, MARK_ITSELF)
    return text.replace("<|", f"<{MARK_BREAK}|")


def refuse_surrogates(text: str) -> None:
    """`DataError` for what no UTF-8 file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"holds a lone surrogate, U+{ord(text[error.start]):04X} at character {error.start}, which no UTF-8 file can.",
            value=text[max(0, error.start - 10) : error.start], rule="text that UTF-8 can hold",
            hint="Read the file again with its right encoding, or replace such characters by U+FFFD.",
        ) from None
