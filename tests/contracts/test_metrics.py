"""The contract of every metric, over whatever stands in the folder, and parity with the libraries that define some of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.core.part import kind
from chattune.evaluate.metrics import Item, Metric

NAMES = kind("metrics").names()
HUNDRED = {"bleu", "chrf"}
UNBOUNDED = {"length"}

SAID = [
    "I have two dogs and a cat at home.",
    "It is raining again, so we stayed inside all day.",
    "Do you like to cook on Sundays?",
    "My sister moved to Boston last year; she works at a hospital.",
    "No idea, what do you think about it yourself?",
    "The train was late, the coffee was cold!",
    "Pizza, of course: who does not like pizza these days?",
    "Good night and sleep well my friend.",
]
SAID_ZH = ["我今天去图书馆看书了，你呢？", "天气很好，我们一起去公园吧。", "我最喜欢吃妈妈做的饺子。", "他昨天晚上没有回家睡觉。"]
OTHER = [
    "I have a dog.", "It rained all day.", "Yes I like cooking, on Sundays mostly.", "", "What do you think?", "coffee",
    "I like pizza too", "night",
]  # fmt: skip
FEW_WORDS = st.lists(st.sampled_from(["a", "b", "c", "d.", "e"]), max_size=7).map(" ".join)


def metric(name: str) -> Metric:
    return kind("metrics").load(name)()


def items(replies: list[str], references: list[str] = SAID, conversations: int = 5) -> list[Item]:
    return [
        Item(f"c{n % conversations}", "hello", reference, reply)
        for n, (reference, reply) in enumerate(zip(references, replies, strict=True))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_value_lies_in_its_interval_and_in_bounds(name: str) -> None:
    part = metric(name)
    for replies, references in ((OTHER, SAID), (SAID, SAID), ([""] * 8, SAID), (SAID_ZH, SAID_ZH[::-1])):
        score = part.score(items(replies, references))
        assert all(map(math.isfinite, (score.value, score.low, score.high)))
        assert score.low <= score.value <= score.high
        assert score.low >= 0
        if name not in UNBOUNDED:
            assert score.high <= (100 if name in HUNDRED else 1) + 1e-9  # a sum of logarithms may round past 100
        assert len(score.per_item) in (0, len(replies))
        assert score.as_dict() == {"value": score.value, "low": score.low, "high": score.high}


@pytest.mark.parametrize("name", [name for name in NAMES if metric(name).needs_reference])
@pytest.mark.parametrize("said", [SAID, SAID_ZH], ids=["en", "zh"])
def test_the_identical_reply_scores_best(name: str, said: list[str]) -> None:
    best = metric(name).score(items(said, said)).value
    assert best == pytest.approx(100 if name in HUNDRED else 1, rel=1e-9)
    assert metric(name).score(items([*said[1:], said[0]], said)).value < best


@pytest.mark.parametrize("name", [name for name in NAMES if metric(name).needs_reference])
@pytest.mark.requirement("R179")
def test_an_empty_reply_lowers_the_score(name: str) -> None:
    part = metric(name)
    full = part.score(items(SAID)).value
    one_empty = part.score(items(["", *SAID[1:]])).value
    assert one_empty < full
    assert part.score(items([""] * len(SAID))).value == 0
    # Leaving the item out instead would have hidden it.
    assert part.score(items(SAID[1:], SAID[1:])).value > one_empty


@pytest.mark.parametrize("name", NAMES)
def test_order_of_items_does_not_matter(name: str) -> None:
    part = metric(name)
    given_items = items(OTHER)
    forwards, backwards = part.score(given_items, seed=3), part.score(given_items[::-1], seed=3)
    for a, b in zip((forwards.value, forwards.low, forwards.high), (backwards.value, backwards.low, backwards.high), strict=True):
        assert a == pytest.approx(b, abs=1e-12)
    assert forwards.per_item == backwards.per_item[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_interval(name: str) -> None:
    part = metric(name)
    assert part.score(items(OTHER), seed=1) == part.score(items(OTHER), seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_no_items_and_one_item_give_a_value_without_width(name: str) -> None:
    none, one = metric(name).score([]), metric(name).score(items(OTHER[:1], SAID[:1]))
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert one.low == one.value == one.high


@pytest.mark.parametrize("name", NAMES)
def test_more_conversations_make_a_narrower_interval(name: str) -> None:
    replies = [*SAID[:2], "", "no no no no no no no", *OTHER[4:]]
    few = metric(name).score([Item(str(n), "", r, a) for n, (r, a) in enumerate(zip(SAID, replies, strict=True))])
    many = metric(name).score([Item(str(n), "", SAID[n % 8], replies[n % 8]) for n in range(8 * 25)])
    assert few.high > few.low
    assert many.high - many.low < 0.5 * (few.high - few.low)  # 25 times as many: about a fifth


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=6))
def test_any_text_is_scored(name: str, pairs: list[tuple[str, str]]) -> None:
    score = metric(name).score([Item(str(n), "", reference, reply) for n, (reference, reply) in enumerate(pairs)])
    assert score.low <= score.value <= score.high
    assert all(math.isfinite(value) for value in (score.value, *score.per_item))


# --- parity with the libraries that define these figures


@pytest.mark.requirement("R179")
@pytest.mark.parametrize(("said", "tokenize"), [(SAID, "13a"), (SAID_ZH, "zh")])
def test_bleu_and_chrf_equal_sacrebleu(said: list[str], tokenize: str) -> None:
    import sacrebleu

    shortened, lengthened = [text[: len(text) // 2] for text in said], [text + text[:9] for text in said]
    for replies in (said, [*said[1:], said[0]], shortened, lengthened, [""] * len(said)):
        bleu, chrf = metric("bleu").score(items(replies, said)), metric("chrf").score(items(replies, said))
        assert f"tok:{tokenize}" in bleu.note
        assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(replies, [said], tokenize=tokenize, force=True).score, abs=0.01)
        assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(replies, [said]).score, abs=0.01)
        for n, (reply, reference) in enumerate(zip(replies, said, strict=True)):
            single = sacrebleu.sentence_bleu(reply, [reference], tokenize=tokenize)
            assert bleu.per_item[n] == pytest.approx(single.score, abs=0.01)
            assert chrf.per_item[n] == pytest.approx(sacrebleu.sentence_chrf(reply, [reference]).score, abs=0.01)


@pytest.mark.requirement("R179")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FEW_WORDS, FEW_WORDS), min_size=2, max_size=5))
def test_bleu_and_chrf_equal_sacrebleu_on_made_up_texts(pairs: list[tuple[str, str]]) -> None:
    import sacrebleu

    references, replies = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    made = items(replies, references)
    assert metric("bleu").score(made).value == pytest.approx(sacrebleu.corpus_bleu(replies, [references], force=True).score, abs=0.01)
    assert metric("chrf").score(made).value == pytest.approx(sacrebleu.corpus_chrf(replies, [references]).score, abs=0.01)


@pytest.mark.requirement("R179")
@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from("aab cd.,!'9Z \n"), max_size=60), st.text(st.sampled_from("aab cd.,!'9Z \n"), max_size=60)
)
def test_rouge_equals_rouge_score(reference: str, reply: str) -> None:
    from rouge_score import rouge_scorer

    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score(reference, reply)
    for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        ours = metric(name).changed(word="words").score([Item("c", "", reference, reply)]).value
        assert ours == theirs[key].fmeasure


@pytest.mark.requirement("R179")
@pytest.mark.parametrize("word", ["jieba", "characters"])
def test_rouge_equals_rouge_score_on_chinese_with_our_words(word: str) -> None:
    from rouge_score import rouge_scorer, tokenizers

    from chattune.features.words import splitter

    class Ours(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return splitter(word)(text)

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Ours())
    for reference in SAID_ZH:
        for reply in (*SAID_ZH, "", "我今天没有去公园", "你好 world"):
            theirs = scorer.score(reference, reply)
            for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
                assert metric(name).changed(word=word).score([Item("c", "", reference, reply)]).value == theirs[key].fmeasure


def test_tokenisation_is_decided_by_the_references_and_said() -> None:
    assert "jieba" in metric("rouge_l").score(items(OTHER[:4], SAID_ZH)).note
    assert "words: words" in metric("rouge_l").score(items(SAID_ZH, SAID[:4])).note
    assert "tok:zh" in metric("bleu").score(items(OTHER[:4], SAID_ZH)).note


# --- what single metrics mean


@pytest.mark.parametrize(
    ("reply", "stuck"),
    [
        ("I do not know, I do not know.", 1), ("I do not know what I do know", 0), ("no no no no no", 1), ("no no no", 0), ("", 0),
        ("hm....................", 1), ("ok ...", 0), ("我不知道我在哪里，我不知道我在哪里", 1), ("你好你好", 0),
    ],
)  # fmt: skip
def test_repetition_is_four_words_said_twice(reply: str, stuck: int) -> None:
    reference = "我不知道" if any(letter > "\u3000" for letter in reply) else "what"
    assert metric("repetition").score([Item("c", "", reference, reply)]).value == stuck


@pytest.mark.parametrize(("reply", "empty"), [("", 1), (" \n\t", 1), ("\u200b\u2060", 1), (".", 0), ("好", 0), ("🙂", 0)])
def test_empty_is_nothing_visible(reply: str, empty: int) -> None:
    assert metric("empty").score([Item("c", "", "hello", reply)]).value == empty


def test_distinct_counts_over_all_replies_together() -> None:
    same = metric("distinct_2").score(items(["we like big dogs"] * 8))
    assert same.value == pytest.approx(3 / 24)
    assert metric("distinct_1").score(items(["one two", "two three", *[""] * 6])).value == pytest.approx(3 / 4)


def test_the_interval_of_distinct_is_centred_on_its_value() -> None:
    score = metric("distinct_2").score([Item(str(n), "", "x", SAID[n % 8] + f" number {n}") for n in range(40)])
    assert score.low < score.value < score.high
    middle = (score.low + score.high) / 2
    assert abs(middle - score.value) < 0.2 * (score.high - score.low)  # a plain bootstrap would lie below the value
