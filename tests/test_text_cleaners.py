"""The cleaners that look at one dialog, each on what it is for and on what it must leave alone; the log of changes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

import chattune
from chattune.core.errors import DataError, SettingError
from chattune.core.part import kind
from chattune.dialogs.artifact import CHANGES
from chattune.dialogs.cleaners import Cleaner
from chattune.dialogs.cleaning import differences
from chattune.dialogs.credentials import find
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.spelling import Chinese, confusions
from chattune.story import Recipe

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
has_data = pytest.mark.skipif(not DATA.exists(), reason="the data is not here")
SAME = None  # the text stays as it is


def part(name: str, **settings: Any) -> Cleaner:
    made = kind("cleaners").load(name).model_validate(settings)
    assert isinstance(made, Cleaner)
    return made


def reply(cleaner: Cleaner, *contents: str) -> str | Drop:
    """What becomes of the last of these replies."""
    turns = [Message(role, text) for content in contents for role, text in (("user", "Hello there"), ("assistant", content))]
    cleaned = cleaner.begin(()).clean(Dialog("d", tuple(turns)))
    return cleaned if isinstance(cleaned, Drop) else cleaned.messages[-1].content


def reason(cleaner: Cleaner, *contents: str) -> str | None:
    """The reason for which a dialog with these replies is left out."""
    found = reply(cleaner, *contents)
    return found.reason if isinstance(found, Drop) else None


def check(cleaner: Cleaner, cases: list[tuple[str, str | None]]) -> None:
    for text, expected in cases:
        assert reply(cleaner, text) == (text if expected is SAME else expected), text


# --------------------------------------------------------------------------------------------------------------- characters


def test_wrongly_decoded_text_is_repaired_and_right_text_stays() -> None:
    chinese = "你好，请问订单什么时候发货？"
    check(part("text_repair"), [
        ("donâ€™t", "don’t"), ("schÃ¶n", "schön"), ("ﬁne", "fine"), ("a\r\nb\u2028c", "a\nb\nc"),
        ("浣犲ソ涓栫晫", "你好世界"), (chinese[:4].encode("gb2312").decode("latin-1"), chinese[:4]),
        ("it’s", SAME), ("Tom &amp; Jerry", SAME), ("联通 élève naïve ÀÉÎ", SAME), (chinese, SAME), ("ＡＢＣ", SAME),
    ])  # fmt: skip
    assert reply(part("text_repair", straight_quotes=True, chinese=False), "it’s ÄãºÃ") == "it's ÄãºÃ"


@pytest.mark.requirement("R027")
def test_width_form_and_white_space_are_one_and_chinese_punctuation_stays() -> None:
    check(part("unicode_forms"), [
        ("ＡＢＣ１２３，你好！\u3000ok", "ABC123，你好！ ok"), ("e\u0301", "é"),
        ("a  b\u00a0c\r\n\n\n\nd \n  e", "a b c\n\nd\n  e"), ("x² ① ﬁ", SAME),
        ("```\na  =  1\n```", SAME), ("use `a  b`", SAME), ("Ａ\u0300", "À"),
    ])  # fmt: skip
    check(part("unicode_forms", form="NFKC"), [("ｱ ﬁ x² ㎡，真的？（对）……", "ア fi x2 m2，真的？（对）……")])
    check(part("unicode_forms", letters="full", white_space=False), [("abc 1", "ａｂｃ １")])
    check(part("unicode_forms", letters="keep"), [("ＡＢＣ", SAME)])
    check(part("unicode_forms", punctuation="full"), [
        ("你好,我是(真的)小王.对?好", "你好，我是（真的）小王。对？好"), ("看http://a.cn:80/x,y", SAME), ("Hi, there (ok).", SAME),
        ("第3.5版", SAME),
    ])  # fmt: skip
    check(part("unicode_forms", punctuation="half"), [("你好，是吗？！好（对）。", "你好, 是吗?! 好(对).")])


@pytest.mark.security
def test_what_steers_a_terminal_goes_and_what_joins_letters_stays() -> None:
    check(part("control_codes"), [
        ("\x1b[1;31mred\x1b[0m \x9b2Jx", "red x"), ("\x1b]8;;http://x\x07link\x1b]8;;\x1b\\", "link"),
        ("\x0304,05col\x03\x02b\x0f", "colb"),
        ("a\x08ab\x00\x07\x85c", "ab\nc"), ("x\u202ey\u2066\ufeff\xad\u200b", "xy"), ("hi\U000e0069\U000e0067", "hi"),
        ("👩\u200d🚀 👍🏽 ☺\ufe0f 🏴\U000e0067\U000e0062\U000e007f", SAME), ("می\u200cخواهم क्\u200dष", SAME),
        ("a\u200db\u200cc", "abc"), ("tab\there\n", SAME),
    ])  # fmt: skip
    assert reply(part("control_codes", hidden=False), "x\u202ey\x00") == "x\u202ey"


# ------------------------------------------------------------------------------------------------------------------------ html


def test_html_becomes_text_and_code_and_comparisons_stay() -> None:
    check(part("html"), [
        ("<p>Hello <b>you</b>&nbsp;!</p><ul><li>one<li>two &amp; three</ul>", "Hello you\xa0!\n\n- one\n- two & three"),
        ("line<br>two<br/>three", "line\ntwo\nthree"), ("Tom &amp; Jerry&#39;s &lt;3", "Tom & Jerry's <3"),
        ("<pre>if a &lt; b:\n\n    x</pre> or <code>a&lt;b</code>", "```\nif a < b:\n\n    x\n```\nor `a<b`"),
        ("<div>if a<b then c</div>", "if a<b then c"),
        ("<html><head><title>t</title><style>p{}</style></head><body>x<script>alert(1)</script></body></html>", "x"),
        ("&amp;lt;b&amp;gt;x&amp;lt;/b&amp;gt;", "x"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a | b\nc"),
        ("see <a href='http://x.y'>this</a> <img src='a' alt='cat'>", "see this cat"), ("<!-- hidden --><p>x", "x"),
        ("a < b && c > d, vector<int> v, List<String> x, I <3 you", SAME), ("use the <br> tag, or \"<p>\", or <b>标签", SAME),
        ("Here is a page:\n<html><body><p>x</p></body></html>", SAME), ("Try:\n<p>x</p>\n<script>go()</script>", SAME),
        ("```html\n<p>x</p>\n```", SAME),
        ("`&amp;` is &copy without a mark", SAME),
        ("<EMAIL> wrote <NAME_1>", SAME), ("http://x.y/?a=1&copy=2", SAME),
    ])  # fmt: skip
    link = "<p><a href='http://x.y'>this</a></p>"
    assert [reply(part("html", links=which), link) for which in ("text", "address", "both")] == ["this", "http://x.y", "this (http://x.y)"]
    assert reply(part("html", pages=False), "<html><p>x</p></html>") == "<html><p>x</p></html>"
    assert reply(part("html", entities=False), "a &amp; b") == "a &amp; b"


# ------------------------------------------------------------------------------------------------------------------ boilerplate


def test_signatures_quotes_and_disclaimers_go_and_sentences_about_them_stay() -> None:
    check(part("boilerplate"), [
        ("It works.\n\nBest regards,\nAnn Smith\nACME Ltd", "It works."), ("done\n-- \nBob\n+1 23", "done"),
        ("ok\n\nSent from my iPhone", "ok"),
        ("好的\n发自我的 iPhone", "好的"), ("已处理，谢谢。\n\n此致\n敬礼\n王强", "已处理，谢谢。"),
        ("Yes.\n\nOn Mon, 3 May 2020 at 10:00, Ann <a@b.c> wrote:\n> did it work?\n> ok\n\nsee above", "Yes.\n\nsee above"),
        ("Yes.\n\nOn Mon, 3 May 2020 at 10:00,\nAnn <a@b.c> wrote:\ndid it work?", "Yes."),
        ("好\n小王 于2020年5月3日 10:00写道：\n> 在吗", "好"),
        ("fine\n-----Original Message-----\nanything", "fine"),
        ("收到。\n\n发件人：张三\n发送时间：今天\n收件人：李四\n主题：x\n内容", "收到。"),
        ("ok.\n\nThis e-mail and any attachments are confidential and intended solely for the addressee.\n\nbye", "ok.\n\nbye"),
        ("好。\n\n本邮件及其附件含有保密信息，仅供收件人使用。", "好。"),
        ("##- Please type your reply above this line -##\nhello", "hello"),
        ("thanks\nbye", SAME), ("that's nice\nthank you", SAME), ("Best", SAME), ("I sent it from my iPhone yesterday", SAME),
        ("On the phone he wrote: no", SAME), ("From: A\nto B", SAME), ("Best regards,\n" + "a long sentence. " * 6, SAME),
    ])  # fmt: skip
    own = part("boilerplate", greetings=True, phrases=["visit OUR  shop"], signatures=False)
    check(own, [("Thank you for contacting ACME!\nYour order is here.\nVisit our shop", "Your order is here."), ("x\n-- \nBob", SAME)])


# ---------------------------------------------------------------------------------------------------- language, length, repetition


@pytest.mark.requirement("R008")
def test_other_languages_are_left_out_and_what_is_too_short_to_tell_stays() -> None:
    english, chinese = part("language", keep=["en"]), part("language", keep=["zh"])
    texts = {
        "de": "Das ist ein sehr schöner Tag, und wir gehen jetzt alle zusammen im Wald spazieren.",
        "fr": "Bonjour, comment allez-vous aujourd'hui, mes chers amis de la campagne ?",
        "en": "Hello there, how are you doing today, and where have you been all this time?",
        "zh": "你好，今天天气不错，我们一起去公园散步吧，顺便吃个饭。",
        "ja": "これはとても美しい日本語の文章ですから、よく読んでください。",
        "ko": "안녕하세요 반갑습니다 오늘은 정말 좋은 날이네요",
    }
    for language, text in texts.items():
        talk = Dialog("d", (Message("user", text), Message("assistant", text)))
        for cleaner, kept in ((english, "en"), (chinese, "zh")):
            found = cleaner.clean(talk)
            assert (found is talk) if language == kept else (isinstance(found, Drop) and found.detail == f"d: {language}")
    short = Dialog("d", (Message("user", "Bonjour"), Message("assistant", "`ceci est du code` https://exemple.fr/bonjour")))
    assert english.clean(short) is short
    with pytest.raises(ValueError, match=r"names 'eng', which is no language that can be told\. Did you mean 'en'\?"):
        part("language", keep=["eng"])


@has_data
def test_real_chats_are_in_their_language() -> None:
    with gzip.open(DATA / "zh_dialogue" / "lccc_toy_train.txt.gz", "rt", encoding="utf-8") as file:
        chinese = [line.replace(" ", "").split("\t") for _, line in zip(range(400), file, strict=False)]
    with gzip.open(DATA / "en_dialogue" / "taskmaster4_data_07.json.gz", "rt", encoding="utf-8") as file:
        english = [[str(turn["text"]) for turn in talk["utterances"]] for talk in json.load(file)][:200]
    for talks, language in ((chinese, "zh"), (english, "en")):
        cleaner = part("language", keep=[language])
        kept = [cleaner.clean(Dialog("d", tuple(Message("user", text) for text in talk))) for talk in talks]
        assert sum(isinstance(one, Dialog) for one in kept) >= 0.99 * len(kept)


@pytest.mark.requirement("R008", "R004")
def test_each_rule_of_length_and_symbols_has_its_reason() -> None:
    usual = part("length_and_symbols")
    faults = {
        "digits": "12345 67890 12345 67", "symbols": "@@@@ #### $$$$ %%%%", "capitals": "WHY ARE YOU SHOUTING AT ME",
        "only_links": "http://a.b/c www.x.y",
        "too_long": "word " * 10_001,
    }  # fmt: skip
    for expected, text in faults.items():
        assert reason(usual, text) == expected
    fine = [
        "ok", "😀" * 20, "IBM", "```\nx = {}[](); //..\n``` fine then", "see http://a.b/12345678901", "你好，世界！", "1 + 1 = 2",
        "这是TSP和NASA的问题", "| a | b |\n|-----|-----|",
    ]  # fmt: skip
    for text in fine:
        assert reason(usual, text) is None
    assert reason(part("length_and_symbols", least_messages=3), "hello") == "too_few_messages"
    assert reason(part("length_and_symbols", most_messages=2), "a", "b") == "too_many_messages"
    assert reason(part("length_and_symbols", least_characters=3), "a b") == "too_short"
    assert reason(part("length_and_symbols", only_links=True), "http://a.b/c") is None
    with pytest.raises(ValueError, match="asks for at least 9 and at most 2 messages"):
        part("length_and_symbols", least_messages=9, most_messages=2)


@pytest.mark.requirement("R008")
def test_repetition_is_shortened_and_circles_are_left_out() -> None:
    check(part("repetition"), [
        ("sooooooo good!!!!!!", "sooo good!!!"), ("hahahahahaha 哈哈哈哈哈哈", "hahaha 哈哈哈"),
        ("no no no no no no stop", "no no no stop"),
        ("a\na\na\na\na\nb", "a\na\na\nb"), ("1000000 http://x.y/aaaaaaa ----------", SAME), ("`aaaaaaaa` aaa", SAME),
        ("| --- | --- |", SAME),
    ])  # fmt: skip
    assert reason(part("repetition"), "the cat sat on the mat " * 10) == "repetitive_reply"
    assert reason(part("repetition"), *["I do not know that."] * 4) == "same_reply"
    assert reason(part("repetition"), *["I do not know that."] * 3) is None
    assert reason(part("repetition"), *["ok"] * 9) is None


# ------------------------------------------------------------------------------------------------------------------- spelling


@pytest.mark.requirement("R005")
def test_planted_typos_are_repaired_and_right_words_stay() -> None:
    pytest.importorskip("symspellpy")
    check(part("spelling"), [
        ("I recieve the adress tommorrow, definately.", "I receive the address tomorrow, definitely."),
        ("dont worry, thats fine", "don't worry, that's fine"),
        ("Recieve it", "Receive it"), ("call Kowalski about Kubernetes", SAME),
        ("see recieve.py or `recieve` or x@recieve.com", SAME),
        ("my favorite color at the center, analyzing, traveling", SAME), ("lol gonna sooooo", SAME), ("the person's hat", SAME),
        ("TCPIP recieve_it #recieve", SAME),
    ])  # fmt: skip
    user = Dialog("d", (Message("user", "I recieve it"), Message("assistant", "ok")))
    assert part("spelling").begin(()).clean(user) is user
    assert part("spelling", roles=["user"]).begin(()).clean(user) != user


@pytest.mark.requirement("R005")
def test_a_word_of_the_users_list_stays(tmp_path: Path) -> None:
    pytest.importorskip("symspellpy")
    (tmp_path / "words.txt").write_text("recieve\n", "utf-8")
    check(part("spelling", words=[str(tmp_path / "words.txt")]), [("recieve the adress", "recieve the address")])


@pytest.mark.requirement("R005")
@has_data
def test_planted_chinese_confusions_are_repaired_and_clean_text_stays() -> None:
    path = DATA / "lexical" / "zh_same_pinyin.txt"
    confused = confusions([str(path)])
    with gzip.open(DATA / "zh_dialogue" / "kdconv_travel_dev.json.gz", "rt", encoding="utf-8") as file:
        texts = [message["message"] for talk in json.load(file) for message in talk["messages"]][:400]
    import rjieba

    draw, corrected, pairs = random.Random(0), Chinese(confused, 7.25, frozenset()), []
    for text in texts:
        words = [word for word in rjieba.cut(text, False) if len(word) > 1 and all(character in confused for character in word)]
        if words:
            word = draw.choice(words)
            place = text.index(word) + draw.randrange(len(word))
            pairs.append((text, text[:place] + draw.choice(confused[text[place]]) + text[place + 1 :]))
    repaired = [corrected(wrong) for _, wrong in pairs]
    right = sum(after == text for after, (text, _) in zip(repaired, pairs, strict=True))
    changed = sum(after != wrong for after, (_, wrong) in zip(repaired, pairs, strict=True))
    assert right >= 0.55 * len(pairs) and right >= 0.95 * changed
    assert sum(corrected(text) != text for text in texts) <= 0.01 * len(texts)
    check(part("spelling", english=False, confusions=[str(path)]), [("真是幸苦你了，`幸苦`", "真是辛苦你了，`幸苦`")])


def test_what_spelling_cannot_use_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="repairs nothing"):
        part("spelling", english=False)
    with pytest.raises(DataError, match=r"nowhere\.txt: does not exist\. Check confusions of the cleaner spelling"):
        part("spelling", english=False, confusions=["nowhere.txt"]).begin(())
    (tmp_path / "bad.txt").write_text("# a comment\n一\t壹\n乙丙\t已\n", "utf-8")
    with pytest.raises(DataError, match=r"bad\.txt:3: does not begin with one character"):
        part("spelling", english=False, confusions=[str(tmp_path / "bad.txt")]).begin(())
    (tmp_path / "sets.txt").write_text("齐\t济\t挤\n一\t壹\t漪夷\n", "utf-8")
    found = confusions([str(tmp_path / "sets.txt")])
    assert set(found["济"]) == {"齐", "挤"} and set(found["一"]) == {"壹", "漪", "夷"} and found["漪"] == "一"
    from chattune.dialogs import spelling

    spelling.english_dictionary.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "symspellpy", None)
    with pytest.raises(SettingError, match=r"chattune\[spell\]"):
        part("spelling", distance=2).begin(())


# ------------------------------------------------------------------------------------------------------------ the log of changes


@pytest.mark.requirement("R005")
def test_a_logged_change_gives_the_text_before_back() -> None:
    draw = random.Random(0)
    for _ in range(300):
        before = "".join(draw.choices("ab 你好,\n", k=draw.randint(0, 30)))
        after = "".join(draw.choice("ab 你好,\n") if draw.random() < 0.2 else own for own in before) + draw.choice(["", "x"])
        text = before
        for change in reversed(differences(before, after)):
            assert text[change["at"] :].startswith(change["before"])
            text = text[: change["at"]] + change["after"] + text[change["at"] + len(change["before"]) :]
        assert text == after
    assert differences("I recieve it, dont I", "I receive it, don't I") == [
        {"at": 2, "before": "recieve", "after": "receive"}, {"at": 14, "before": "dont", "after": "don't"},
    ]  # fmt: skip
    assert differences("我因该去", "我应该去") == [{"at": 1, "before": "因", "after": "应"}]
    long = "word " * 3000
    assert differences("x " + long + "y", "z " + long + "w") == [{"at": 0, "before": "x " + long + "y", "after": "z " + long + "w"}]


@pytest.mark.requirement("R005")
def test_the_run_holds_every_change_of_a_cleaner_that_logs(tmp_path: Path) -> None:
    (tmp_path / "sets.txt").write_text("因\t应\n", "utf-8")
    said = [(f"因该 {i} 吗？", f"因该  {i} 个") for i in range(300)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    spelling = {"english": False, "confusions": [str(tmp_path / "sets.txt")]}
    cleaners = [{"unicode_forms": {}}, {"spelling": spelling}]
    recipe = {"collect": {"sources": str(tmp_path / "chat.jsonl")}, "clean": {"cleaners": cleaners, "processes": 2}}
    made = chattune.run(recipe, home=tmp_path / "runs", until="clean").runs["clean"]
    logged = [json.loads(line) for line in (made / CHANGES).read_text("utf-8").splitlines()]
    assert len(logged) == 300 and logged[7]["changes"] == [{"at": 0, "before": "因", "after": "应"}]
    assert {key: logged[7][key] for key in ("cleaner", "line", "message", "role")} == {
        "cleaner": "spelling", "line": 8, "message": 1, "role": "assistant",
    }  # fmt: skip
    (tmp_path / "sets.txt").write_text("因\t应\n音\t应\n", "utf-8")  # other files: another run
    assert chattune.run(recipe, home=tmp_path / "runs", until="clean").runs["clean"] != made
    without = {**recipe, "clean": {"cleaners": ["unicode_forms"]}}
    assert not (chattune.run(without, home=tmp_path / "runs", until="clean").runs["clean"] / CHANGES).exists()


def test_no_cleaner_both_logs_and_hides() -> None:
    for name in kind("cleaners").names():
        own: Any = kind("cleaners").load(name)
        assert not (own.private and own.logs_changes), name
    assert part("spelling").logs_changes and part("personal_data").private and part("secrets").private


# --------------------------------------------------------------------------------------------------------------------- secrets


def _drawn(draw: random.Random, count: int, letters: str = "ABCDEFGHabcdefghijkmnpqrs0123456789") -> str:
    return "".join(draw.choices(letters, k=count))


@pytest.mark.security
@pytest.mark.requirement("R006")
def test_credentials_are_found_by_their_forms_and_their_labels() -> None:
    draw = random.Random(0)
    head = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    wanted = {
        "api_key": [
            f"ghp_{_drawn(draw, 36)}", f"AKIA{_drawn(draw, 16, 'ABCDEF234567')}", f"sk-ant-api03-{_drawn(draw, 90)}",
            f"hf_{_drawn(draw, 34)}",
            f"xoxb-123456789012-1234567890123-{_drawn(draw, 24)}", f"AIza{_drawn(draw, 35)}", f"LTAI{_drawn(draw, 20)}",
            f"sk_live_{_drawn(draw, 24)}",
            f"npm_{_drawn(draw, 36)}", f"glpat-{_drawn(draw, 20)}", f"AWS_SECRET_ACCESS_KEY={_drawn(draw, 40)}",
            f"密钥：{_drawn(draw, 32)}",
            f'"api_key": "{_drawn(draw, 32)}"', f"https://hooks.slack.com/services/T0123/B0123/{_drawn(draw, 24)}",
        ],
        "token": [
            f"{head}.eyJzdWIiOiIxIn0.{_drawn(draw, 43)}", f"Authorization: Bearer {_drawn(draw, 40)}",
            "authorization: Basic Ym9iOnB3MTIz",
        ],
        "password": [
            "password: hunter2", "my password is Tr0ub4dor&3", "密码是abc123456", "wifi密码：88888888x", "DB_PASSWORD=s3cr3t!x",
            "postgres://bob:s3cr@db.host/x",
            "Server=a;Password=Ab12;Database=x", "redis://:p4ss@cache:6379", "root密码就是 Abc@123", "curl -u bob:pw123 https://x",
            "password: correcthorse",
        ],
        "private_key": [
            f"-----BEGIN RSA PRIVATE KEY-----\n{_drawn(draw, 200)}\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\nMIIE",
        ],
    }  # fmt: skip
    for own, texts in wanted.items():
        for text in texts:
            assert [one.kind for one in find(f"look: {text}")] == [own], text
            assert f"<{own.upper()}>" in str(reply(part("secrets"), text))
    harmless = [
        "the password is wrong", "密码是多少", "password: ********", "reset my password please",
        f"commit {_drawn(draw, 40, '0123456789abcdef')}",
        "password is required", "token: your_token_here", "123e4567-e89b-12d3-a456-426614174000", "api key is missing",
        "password = os.environ['X']",
        "the secret is to practise", "sk-learn is good", "http://localhost:8080/x@y", "def f(password: str) -> None",
        "token budget: 1000", "密码是我的生日",
        "password: <PASSWORD>", "secret: ${SECRET}", "eyJhbGciOi.x.y", "my password is not working",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg",
    ]  # fmt: skip
    check(part("secrets"), [(text, SAME) for text in harmless])


@pytest.mark.security
def test_only_the_value_of_a_credential_goes_and_equal_ones_stay_equal() -> None:
    check(part("secrets"), [
        ("db is postgres://bob:s3cr@db.host/x", "db is postgres://bob:<PASSWORD>@db.host/x"),
        ("password: hunter2, ok?", "password: <PASSWORD>, ok?"),
    ])  # fmt: skip
    assert reply(part("secrets", mode="numbered"), "pw: x", "password: hunter2 password: hunter3 password: hunter2").endswith(  # type: ignore[union-attr]
        "password: <PASSWORD_1> password: <PASSWORD_2> password: <PASSWORD_1>"
    )
    assert reply(part("secrets", kinds=["token"]), "password: hunter2") == "password: hunter2"


def test_every_cleaner_that_looks_at_one_dialog_can_stand_in_a_recipe() -> None:
    names = [name for name in kind("cleaners").names() if name != "offensive_text"]
    assert [cleaner["name"] for cleaner in Recipe.read({"clean": {"cleaners": names}}).dump()["clean"]["cleaners"]] == names
