"""Personal data: how much of it is found and how much is found wrongly; what stands in its place; the key that gives it back."""

from __future__ import annotations

import gzip
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

import chattune
from chattune.core.errors import DataError, SettingError
from chattune.dialogs.cleaners.personal_data import PersonalData
from chattune.dialogs.dialog import Dialog, Message
from chattune.dialogs.masking import Mask, key_check, new_key, parsed_key, read_key, reveal
from chattune.dialogs.personal import KINDS, find, iban_checksum, luhn, presidio, resident_checksum
from chattune.tokens.control import CONTROL, control_token, escaped

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def values(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.begin : one.end]) for one in find(text)]


def cleaned(cleaner: PersonalData, *contents: str) -> list[str]:
    roles = ("user", "assistant")
    own = Dialog("d", tuple(Message(roles[place % 2], content) for place, content in enumerate(contents)))
    done = cleaner.begin(()).clean(own)
    assert isinstance(done, Dialog)
    return [message.content for message in done.messages]


# ------------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.requirement("R006")
def test_recall_and_precision_on_two_thousand_made_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import personal_data as bench

    made = bench.lines(0, 2000)
    assert len(made) == 2000 and made == bench.lines(0, 2000)
    assert 0.3 < sum(not line.truth for line in made) / 2000 < 0.5
    scores = bench.scored(made, lambda text: [(one.kind, one.begin, one.end) for one in find(text)])
    assert set(scores.kinds) == set(KINDS)
    for kind, score in scores.kinds.items():
        least = 0.99 if kind in bench.CHECKED else 0.95
        assert score.values >= 80 and score.recall >= least and score.precision >= max(0.90, least - 0.01), (kind, score)
    everything, checked = scores.all(), scores.all(bench.CHECKED)
    assert everything.recall >= 0.95 and everything.precision >= 0.90
    assert checked.recall >= 0.99 and checked.precision >= 0.99
    nothing = bench.scored(made[:200], lambda text: [])
    assert nothing.all().recall == 0 and bench.scored(made[:200], lambda text: [("email", 0, len(text))]).all().precision < 0.2


def test_checksums_are_those_of_their_standards() -> None:
    assert all(map(luhn, ["4111111111111111", "378282246310005", "6011111111111117", "6222021234567890128"]))
    assert not any(map(luhn, ["4111111111111112", "378282246310006"]))
    assert all(map(iban_checksum, ["DE89370400440532013000", "GB82WEST12345698765432", "NO9386011117947"]))
    assert not any(map(iban_checksum, ["DE88370400440532013000", "GB82WEST12345698765423"]))
    assert [resident_checksum(first) for first in ("11010519491231002", "44052418800101001")] == ["X", "4"]


def test_each_kind_is_found_with_its_exact_place() -> None:
    expected = {
        "at john.doe+x@mail.example.co.uk, 或者abc@qq.com谢谢": [("email", "john.doe+x@mail.example.co.uk"), ("email", "abc@qq.com")],
        "我的手机是13812345678，座机０７５５－８２３４５６７８": [("phone", "13812345678"), ("phone", "０７５５－８２３４５６７８")],
        "(415) 555-2671 or +44 20 7946 0958": [("phone", "(415) 555-2671"), ("phone", "+44 20 7946 0958")],
        "card 4111 1111 1111 1111 is mine": [("card", "4111 1111 1111 1111")],
        "use DE89 3704 0044 0532 0130 00 BANK": [("iban", "DE89 3704 0044 0532 0130 00")],
        "ping 192.168.1.20, fe80::1ff:fe23:4567:890a": [("ip", "192.168.1.20"), ("ip", "fe80::1ff:fe23:4567:890a")],
        "身份证11010519491231002X。": [("id_number", "11010519491231002X")],
        "我住在北京市朝阳区建国路88号3号楼1201室，来": [("address", "北京市朝阳区建国路88号3号楼1201室")],
        "I live at 12 Main St, Springfield, IL 62704 now": [("address", "12 Main St, Springfield, IL 62704")],
        "My name is Anne O'Connor, born on March 3, 1990": [("name", "Anne O'Connor"), ("birth_date", "March 3, 1990")],
        "我叫王小明，生日是1990年3月3日": [("name", "王小明"), ("birth_date", "1990年3月3日")],
        "http://bob:pw@host.org/x QQ：123456789": [("account", "bob:pw"), ("account", "123456789")],
    }
    for text, found in expected.items():
        assert values(text) == found


def test_what_only_looks_alike_is_left_alone() -> None:
    for text in (
        "订单号13812345678", "order no. 4155552671", "单号 6222021234567890128", "4111 1111 1111 1112",
        "DE88 3704 0044 0532 0130 00", "version 1.2.3.4",
        "Chrome/91.0.4472.124", "127.0.0.1 and 255.255.255.0", "2023-10-12 14:30:05", "std::vector abc::def", "icon@2x.png",
        "git@github.com:a/b.git",
        "5 minutes down the road", "my name is not important", "我叫了外卖", "我叫他来", "10路公交车", "8号线地铁",
        "3.14159265358979", "11010519491231002X1",
        "一共13812345678个", "x@localhost.localdomain", "Dr. Strange and Mr. Bean", "我们这里8号供暖", "http://x.org/13812345678",
        "<EMAIL_1> <PHONE>",
    ):  # fmt: skip
        assert values(text) == [], text


@pytest.mark.skipif(not DATA.exists(), reason="the data is not here")
@pytest.mark.requirement("R006")
def test_real_chinese_addresses_and_telephone_numbers_are_found() -> None:
    with gzip.open(DATA / "zh_dialogue" / "crosswoz_hotel_db.json.gz", "rt", encoding="utf-8") as file:
        hotels = [row[1] for row in json.load(file)][:300]
    addresses = [row["地址"] for row in hotels if re.search(r"\d号", row["地址"] or "")]
    assert len(addresses) > 200
    assert sum(any(kind == "address" for kind, _ in values(f"地址是{own}，欢迎")) for own in addresses) >= 0.97 * len(addresses)
    numbers = [row["电话"] for row in hotels if row["电话"]]
    assert sum(any(kind == "phone" for kind, _ in values(f"打{own}")) for own in numbers) >= 0.97 * len(numbers)


# ------------------------------------------------------------------------------------------------------------ what stands for it


@pytest.mark.requirement("R006")
def test_equal_values_of_a_dialog_have_equal_numbers_and_types_have_their_own() -> None:
    said = ["I am ann@x.org, call (415) 555-2671", "ANN@x.org or bob@x.org? 4155552671 no: phone 415-555-2671", "ann@x.org"]
    numbered = PersonalData()
    assert cleaned(numbered, *said) == [
        "I am <EMAIL_1>, call <PHONE_1>", "<EMAIL_1> or <EMAIL_2>? 4155552671 no: phone <PHONE_1>", "<EMAIL_1>",
    ]  # fmt: skip
    assert cleaned(numbered, "<EMAIL_3> wrote to ann@x.org", "ok") == ["<EMAIL_3> wrote to <EMAIL_4>", "ok"]
    assert cleaned(PersonalData(mode="typed"), *said)[2] == "<EMAIL>"
    assert cleaned(PersonalData(kinds=("phone",)), *said)[0] == "I am ann@x.org, call <PHONE_1>"
    assert cleaned(PersonalData(regions=("DE",)), "Tel. 030 23125000", "030/23125000")[0] == "Tel. <PHONE_1>"


@pytest.mark.security
def test_what_stands_for_it_is_plain_text_for_every_tokenizer() -> None:
    masks = [Mask("typed"), Mask("numbered"), Mask("encrypted", parsed_key(new_key(), "key"))]
    for mask in masks:
        for kind in KINDS:
            shown = mask(kind, "a value")
            assert escaped(shown) == shown and not any(control_token(name) in shown for name in CONTROL)
            assert re.fullmatch(r"<[A-Z_]+(?:_\d+|:[A-Za-z0-9_-]+)?>", shown)


@pytest.mark.security
@pytest.mark.requirement("R006")
def test_encrypted_values_come_back_with_the_key_and_with_no_other(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "key").write_text(key + "\n")
    encrypting = PersonalData(mode="encrypted", key_file=str(tmp_path / "key"))
    said = ["My name is Ann, ann@x.org", "地址：北京市朝阳区建国路88号", "ann@x.org"]
    hidden = cleaned(encrypting, *said)
    assert not any(value in text for text in hidden for value in ("ann", "Ann", "建国路"))
    assert [reveal(text, key) for text in hidden] == said
    assert cleaned(encrypting, *hidden) == hidden and cleaned(encrypting, *said) == hidden  # the same at any time, in any dialog
    assert hidden[2] in hidden[0]
    with pytest.raises(DataError, match="is not revealed by this key") as caught:
        reveal(hidden[0], new_key())
    assert key not in str(caught.value.as_json())
    changed = hidden[2][:-3] + ("A" if hidden[2][-3] != "A" else "B") + hidden[2][-2:]
    for broken in (changed, hidden[2].replace("EMAIL", "PHONE")):  # neither the value nor its type can be changed
        with pytest.raises(DataError, match="is not revealed"):
            reveal(broken, key)
    assert reveal("nothing <EMAIL_1> here <|user|>", key) == "nothing <EMAIL_1> here <|user|>"


@pytest.mark.security
@pytest.mark.requirement("R006")
def test_no_file_of_a_run_holds_the_key_or_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = new_key(), new_key()
    talk = [{"role": "user", "content": "I am ann.private@x.org"}, {"role": "assistant", "content": "Hello ann.private@x.org"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": talk, "n": n}) + "\n" for n in range(1)))
    settings = {"mode": "encrypted", "key_variable": "CHATTUNE_TEST_KEY"}
    recipe = {"collect": {"sources": str(tmp_path / "chat.jsonl")}, "clean": {"cleaners": {"personal_data": settings}, "processes": 1}}
    runs = []
    for key in (first, other):
        monkeypatch.setenv("CHATTUNE_TEST_KEY", key)
        runs.append(chattune.run(recipe, home=tmp_path / "runs", until="clean").runs["clean"])
    assert runs[0] != runs[1], "another key is another run"
    written = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert not any(key.encode() in content or bytes.fromhex(key) in content for content in written.values() for key in (first, other))
    assert first not in "".join(capsys.readouterr())
    cleaned_files = {path: content for path, content in written.items() if path.parent in runs}
    assert cleaned_files and not any(b"ann.private" in content for content in cleaned_files.values())
    assert "ann.private@x.org" in reveal((runs[0] / "conversations.jsonl").read_text(), first)
    assert key_check(parsed_key(first, "key")) in (runs[0] / "plan.json").read_text()
    monkeypatch.delenv("CHATTUNE_TEST_KEY")
    with pytest.raises(SettingError, match="no variable CHATTUNE_TEST_KEY with the key"):
        chattune.run(recipe, home=tmp_path / "runs", until="clean")


@pytest.mark.security
def test_keys_that_cannot_be_used_are_told_and_never_shown(tmp_path: Path) -> None:
    for settings, says in (
        ({"mode": "encrypted"}, "encrypts with one key"),
        ({"mode": "encrypted", "key_file": "a", "key_variable": "B"}, "and not both"),
        ({"key_file": "a"}, "needs no key_file unless mode is encrypted"), ({"regions": ["XX"]}, "names XX, which is no country"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            PersonalData.model_validate(settings)
    with pytest.raises(DataError, match=r"nowhere: holds no key that can be read: No such file"):
        read_key(str(tmp_path / "nowhere"), None)
    for wrong in ("secretsecret", secrets.token_hex(31), "g" * 128):
        (tmp_path / "key").write_text(wrong)
        with pytest.raises(DataError, match=r"is no key\. Make one with `openssl rand -hex 64`") as caught:
            read_key(str(tmp_path / "key"), None)
        assert wrong not in json.dumps(caught.value.as_json())
    assert all(len(read_key(_written(tmp_path, secrets.token_hex(size)), None)) == size for size in (32, 48, 64))
    shown = repr(PersonalData(mode="encrypted", key_file=_written(tmp_path, "ab" * 32)).begin(()))
    assert "PersonalData" in shown and "abab" not in shown and "\\xab" not in shown


def _written(folder: Path, text: str) -> str:
    (folder / "key").write_text(text)
    return str(folder / "key")


# ------------------------------------------------------------------------------------------------------------------ recogniser


def test_a_recogniser_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    presidio.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(SettingError, match=r"the package \w+ is not installed\. Run `pip install 'chattune\[pii-ner\]'`"):
        PersonalData(recogniser="en_core_web_sm").begin(())


def test_a_recogniser_finds_names_in_running_text(tmp_path: Path) -> None:
    pytest.importorskip("presidio_analyzer")
    import spacy

    presidio.cache_clear()
    pipeline: Any = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Ada Lovelace"}])
    pipeline.to_disk(tmp_path / "pipeline")
    recognising = PersonalData(recogniser=str(tmp_path / "pipeline"))
    assert cleaned(recognising, "Yesterday Ada Lovelace came.", "ok") == ["Yesterday <NAME_1> came.", "ok"]
    with pytest.raises(SettingError, match="is no spaCy pipeline that is installed here"):
        PersonalData(recogniser=str(tmp_path / "nothing")).begin(())
