"""Near-duplicates at size: blocks on several processes give the same pairs, and the quick way for ASCII is the same as the other."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattune.core.executors import Executor
from chattune.dialogs import near_duplicates
from chattune.dialogs.near_duplicates import normalised, similar_pairs


@given(st.text(st.characters(max_codepoint=127), max_size=80))
def test_ascii_is_normalised_as_any_text_is(text: str) -> None:
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = re.sub(r"[\W_]+", " ", re.sub(r"['’‘`´]", "", folded)).strip()
    assert normalised(text) == (letters or " ".join(folded.split()))


def test_blocks_on_two_processes_give_the_pairs_of_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrd", k=5)) for _ in range(500)]
    texts = list(dict.fromkeys(" ".join(draw.choices(words, k=12)) for _ in range(300)))
    texts += [text.replace(text.split()[3], "other", 1) for text in texts[:90]]
    whole = similar_pairs(texts, 0.7)
    assert len(whole) >= 80
    monkeypatch.setattr(near_duplicates, "_FEW", 100)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 64)
    monkeypatch.setattr(near_duplicates, "_SIGNED", 16)
    for executor in (Executor(), Executor("processes", 2)):
        assert np.array_equal(similar_pairs(texts, 0.7, executor=executor), whole)
