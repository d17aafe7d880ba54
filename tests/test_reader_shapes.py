"""What each reader of a known data set does with what is its own: knowledge, ranks, rewards, personas, tools, weights, groups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chattune.core.errors import DataError
from chattune.core.part import kind
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.readers import Reader

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def read(name: str, path: Path, content: str | list[Any] | None = None, **changes: Any) -> tuple[list[Dialog], list[Drop]]:
    if content is not None:
        path.write_text(content if isinstance(content, str) else "".join(f"{json.dumps(row)}\n" for row in content), "utf-8")
    reader = kind("readers").load(name).model_validate(changes)
    assert isinstance(reader, Reader)
    items = list(reader.read(path))
    return [item for item in items if isinstance(item, Dialog)], [item for item in items if isinstance(item, Drop)]


def said(dialog: Dialog) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in dialog.messages]


# ----------------------------------------------------------------------------------------------------------- open data sets


@pytest.mark.requirement("R020")
def test_cornell_movie_dialogs_in_their_own_encoding(tmp_path: Path) -> None:
    between = " +++$+++ "
    (tmp_path / "movie_lines.txt").write_bytes("".join(
        between.join(own) + "\n" for own in (
            ("L1045", "u0", "m0", "BIANCA", "Where's the café?"), ("L1044", "u2", "m0", "CAMERON", "Over there +++$+++"),
            ("L985", "u0", "m0", "BIANCA", "I hope so."), ("broken",),
        )
    ).encode("latin-1"))  # fmt: skip
    path = tmp_path / "movie_conversations.txt"
    rows = [("u0", "u2", "m0", "['L1045', 'L1044', 'L985']"), ("u0", "u2", "m0", "['L985', 'L1']")]
    dialogs, drops = read("cornell_movie_dialogs", path, "".join(between.join(own) + "\n" for own in rows), encoding="latin-1")
    assert said(dialogs[0]) == [("user", "Where's the café?"), ("assistant", "Over there +++$+++"), ("user", "I hope so.")]
    assert dialogs[0].metadata == {"movie": "m0", "speakers": {"user": "BIANCA", "assistant": "CAMERON"}}
    assert [(drop.line, drop.reason) for drop in drops] == [(2, "missing_line")] and "1 lines cannot be read" in drops[0].detail
    (tmp_path / "movie_lines.txt").rename(tmp_path / "lines.txt")
    assert len(read("cornell_movie_dialogs", path, lines="lines.txt", encoding="latin-1")[0]) == 1
    with pytest.raises(DataError, match=r"needs movie_lines\.txt beside it"):
        read("cornell_movie_dialogs", path, encoding="latin-1")


@pytest.mark.requirement("R020")
def test_persona_chat_of_parlai_and_of_the_hub(tmp_path: Path) -> None:
    text = (
        "1 your persona: i ski.\n2 partner's persona: i cook.\n3 hi , who are you ?\tanna .\t\tno|anna .\n4 and\\nwhat ?\tski .\n"
        "1 your persona: i sing.\n2 __SILENCE__\thello\n"
    )
    dialogs, drops = read("persona_chat", tmp_path / "train.txt", text)
    assert said(dialogs[0]) == [
        ("system", "i ski."), ("user", "hi , who are you ?"), ("assistant", "anna ."), ("user", "and\nwhat ?"), ("assistant", "ski .")
    ]
    assert dialogs[0].metadata == {"partner_persona": ["i cook."]} and not drops
    assert said(dialogs[1]) == [("system", "i sing."), ("assistant", "hello")] and dialogs[1].line == 5
    row = {"personality": ["i ski."], "utterances": [
        {"history": ["hi"], "candidates": ["no", "hello"]}, {"history": ["hi", "hello", "bye"], "candidates": ["no", "see you"]}]}
    dialogs, _ = read("persona_chat", tmp_path / "train.jsonl", [row], persona="metadata")
    assert said(dialogs[0]) == [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "see you")]
    assert dialogs[0].metadata == {"persona": ["i ski."]}


def tree(**more: Any) -> dict[str, Any]:
    def node(own: str, role: str, *replies: Any, **told: Any) -> dict[str, Any]:
        return {"message_id": own, "text": own, "role": role, "replies": list(replies), **told}

    return {"message_tree_id": "t", "prompt": node(
        "q", "prompter", node("worse", "assistant", node("r", "prompter", node("s", "assistant")), rank=1),
        node("best", "assistant", rank=0), node("gone", "assistant", node("lost", "prompter"), deleted=True),
        node("unranked", "assistant"), lang="en"), **more}  # fmt: skip


@pytest.mark.requirement("R001")
def test_oasst_follows_the_best_replies_or_gives_every_path_as_one_group(tmp_path: Path) -> None:
    dialogs, drops = read("oasst", tmp_path / "t.jsonl", [tree(tree_state="ready")])
    assert [said(dialog) for dialog in dialogs] == [[("user", "q"), ("assistant", "best")]] and not drops
    assert dialogs[0].metadata == {"tree_state": "ready", "lang": "en", "deleted": 2} and dialogs[0].group is None
    dialogs, _ = read("oasst", tmp_path / "t.jsonl", paths="all")
    assert [[text for _, text in said(dialog)] for dialog in dialogs] == [["q", "worse", "r", "s"], ["q", "best"], ["q", "unranked"]]
    assert {dialog.group for dialog in dialogs} == {"t"} and len({dialog.id for dialog in dialogs}) == 3


def test_oasst_messages_that_are_rows_of_their_own_are_put_together(tmp_path: Path) -> None:
    flat = lambda own, parent, role, **more: {  # noqa: E731
        "message_id": own, "parent_id": parent, "message_tree_id": more.pop("tree", "t"), "text": own, "role": role, **more
    }
    rows = [
        flat("q", None, "prompter"), flat("a", "q", "assistant", rank=1), flat("b", "q", "assistant", rank=0),
        flat("c", "nowhere", "prompter"), flat("x", None, "prompter", tree="u"), flat("x", "x", "assistant", tree="u"),
    ]  # fmt: skip
    dialogs, drops = read("oasst", tmp_path / "t.jsonl", rows)
    assert said(dialogs[0]) == [("user", "q"), ("assistant", "b")] and dialogs[0].metadata == {"without_parent": 1}
    assert len(dialogs) == 1 and [(drop.line, drop.reason) for drop in drops] == [(5, "no_parent")]


def test_oasst_trees_deeper_than_pythons_stack_are_walked(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"message_id": str(n), "parent_id": str(n - 1) if n else None, "message_tree_id": "t", "text": str(n),
         "role": ("prompter", "assistant")[n % 2]} for n in range(3000)
    ]  # fmt: skip
    (dialog,), _ = read("oasst", tmp_path / "t.jsonl", rows, paths="all")
    assert len(dialog.messages) == 3000


@pytest.mark.requirement("R001")
def test_taskmaster_keeps_calls_rewards_and_groups(tmp_path: Path) -> None:
    context = [{"role": "user", "text": "table for two"}, {"role": "agent", "api": {"find": {"n": 2}}},
               {"role": "api", "response": ["x"]}]  # fmt: skip
    rows = [
        {"conversation_id": "d", "context": json.dumps(context[:1]), "generation": json.dumps(context[1]), "reward": 1.0},
        {"conversation_id": "d", "context": context, "generation": {"role": "agent", "text": "sorry"}, "reward": 0},
        {"conversation_id": "e", "utterances": [{"speaker": "user", "text": "q", "annotations": [{"name": "x"}], "segments": []},
                                                {"speaker": "assistant", "text": "a"}], "instruction_id": "pizza"},
    ]  # fmt: skip
    (first, second, third), drops = read("taskmaster", tmp_path / "t.jsonl", rows)
    assert not drops and first.group == second.group == "d" and first.id != second.id
    assert said(second) == [("user", "table for two"), ("assistant", '{"find": {"n": 2}}'), ("tool", '["x"]'), ("assistant", "sorry")]
    assert [message.weight for message in second.messages] == [None, None, None, 0.0] and first.messages[-1].weight is None
    assert third.metadata == {"instruction_id": "pizza", "annotations": {"0": [{"name": "x"}]}}


@pytest.mark.requirement("R001")
def test_kdconv_and_crosswoz_keep_the_knowledge_behind_each_message(tmp_path: Path) -> None:
    attrs = [{"name": "泰坦尼克号", "attrname": "导演", "attrvalue": "卡梅隆"}]
    film = {"name": "电影", "messages": [{"message": "谁拍的？"}, {"message": "卡梅隆", "attrs": attrs}]}
    (dialog,), _ = read("kdconv", tmp_path / "k.jsonl", [film])
    assert dialog.metadata == {"name": "电影", "knowledge": {"1": [["泰坦尼克号", "导演", "卡梅隆"]]}}
    own = {"goal": [1], "type": "单领域", "messages": [
        {"role": "usr", "content": "q", "dialog_act": [["Request", "餐馆", "名称", ""]]},
        {"role": "sys", "content": "a", "dialog_act": []}]}  # fmt: skip
    (dialog,), _ = read("crosswoz", tmp_path / "c.json", json.dumps({"77": own}, indent=1))
    assert dialog.id == "77" and said(dialog) == [("user", "q"), ("assistant", "a")]
    assert dialog.metadata == {"goal": [1], "type": "单领域", "knowledge": {"0": [["Request", "餐馆", "名称", ""]]}}


@pytest.mark.parametrize(("name", "role"), [("kdconv_film_test.json.gz", "kdconv"), ("crosswoz_val.json.zip", "crosswoz")])
def test_the_knowledge_of_real_files_is_that_of_their_messages(name: str, role: str) -> None:
    path = DATA / "zh_dialogue" / name
    if not path.exists():
        pytest.skip("the data is not here")
    dialogs, drops = read(role, path)
    assert len(dialogs) > 100 and not drops
    for dialog in dialogs:
        places = dialog.metadata.get("knowledge", {})
        assert all(0 <= int(place) < len(dialog.messages) and triples for place, triples in places.items())
    assert sum(bool(dialog.metadata.get("knowledge")) for dialog in dialogs) > 0.9 * len(dialogs)


def test_sgd_keeps_its_services_and_where_it_is_asked_its_frames(tmp_path: Path) -> None:
    row = {"dialogue_id": "1_0", "services": ["Events_1"], "turns": [
        {"speaker": "USER", "utterance": "q", "frames": [{"service": "Events_1"}]},
        {"speaker": "SYSTEM", "utterance": "a", "frames": []}]}  # fmt: skip
    (dialog,), _ = read("sgd", tmp_path / "s.json", json.dumps([row]))
    assert dialog.id == "1_0" and dialog.metadata == {"services": ["Events_1"]}
    (dialog,), _ = read("sgd", tmp_path / "s.json", frames=True)
    assert dialog.metadata["frames"] == {"0": [{"service": "Events_1"}]}


@pytest.mark.parametrize(("text", "plain"), [
    ("你 好 吗 ？", "你好吗？"), ("我 用 iPhone 15 Pro 拍 的", "我用iPhone 15 Pro拍的"), ("hello there", "hello there"),
    ("好 的 …… 再 见", "好的……再见"), ("𠮷 野 家", "𠮷野家"), ("a b 中 c d", "a b中c d"),
])  # fmt: skip
def test_lccc_takes_out_only_the_spaces_that_part_chinese_characters(text: str, plain: str, tmp_path: Path) -> None:
    (dialog,), _ = read("lccc", tmp_path / "l.txt", f"{text}\tok\n")
    assert dialog.messages[0].content == plain


# --------------------------------------------------------------------------------------------------------------- rows of chats


@pytest.mark.requirement("R001")
def test_openai_rows_with_tools_weights_parts_and_old_names(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    row = {"id": 7, "group": "g", "tools": [{"x": 1}], "messages": [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "done", "weight": 0}]}  # fmt: skip
    (dialog,), drops = read("openai_messages", tmp_path / "o.jsonl", [row])
    assert said(dialog) == [
        ("system", "short"), ("user", "ab"), ("assistant", '{"name": "find", "arguments": "{}"}'), ("tool", "7"), ("assistant", "done")
    ] and not drops
    assert (dialog.id, dialog.group, dialog.metadata) == ("7", "g", {"tools": [{"x": 1}]})
    assert [message.weight for message in dialog.messages] == [None] * 4 + [0.0]
    (dialog,), _ = read("openai_messages", tmp_path / "o.jsonl", [{"turns": row["messages"][1:2]}], key="turns")
    assert said(dialog) == [("user", "ab")]


def test_sharegpt_rows_with_a_system_text_beside_them(tmp_path: Path) -> None:
    turns = [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a", "weight": 0.5}]
    rows = [{"system": "short", "conversations": turns}, {"system": "x", "conversations": [{"from": "system", "value": "own"}, *turns]}]
    (first, second), _ = read("sharegpt", tmp_path / "s.jsonl", rows)
    assert said(first) == [("system", "short"), ("user", "q"), ("assistant", "a")] and first.messages[-1].weight == 0.5
    assert said(second)[0] == ("system", "own") and len(second.messages) == 3


def test_alpaca_rows_of_dolly_and_with_a_joint_of_ones_own(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate.", "context": "x", "response": "y", "category": "qa"},
            {"instruction": "q", "input": None, "output": "a"}]  # fmt: skip
    (first, second), _ = read("alpaca", tmp_path / "a.jsonl", rows, joint=": ")
    assert said(first) == [("user", "Translate.: x"), ("assistant", "y")] and first.metadata == {"category": "qa"}
    assert said(second) == [("user", "q"), ("assistant", "a")]


def test_the_instances_of_an_instruction_are_a_group(tmp_path: Path) -> None:
    row = {"id": "s", "instruction": "q", "instances": [{"input": "x", "output": "1"}, {"input": "", "output": "2"}]}
    (first, second), _ = read("self_instruct", tmp_path / "s.jsonl", [row])
    assert (first.id, second.id, first.group, second.group) == ("s/1", "s/2", "s", "s")
    assert said(first) == [("user", "q\n\nx"), ("assistant", "1")] and said(second) == [("user", "q"), ("assistant", "2")]


# ------------------------------------------------------------------------------------------------------------------- quickness


def test_readers_are_listed_explained_and_ask_for_no_large_package(tmp_path: Path) -> None:
    from chattune.cli import main

    large = ("torch", "numpy", "scipy", "pyarrow", "openpyxl", "pandas", "lxml", "zstandard", "datasets", "tarfile")
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    code = (
        "import sys\nfrom pathlib import Path\nfrom chattune.dialogs.detect import detect\n"
        f"assert detect(Path({str(tmp_path / 'chat.jsonl')!r})).name == 'openai_messages'\n"
        f"print([name for name in {large} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
    assert main(["list", "readers"]) == 0
    for name in kind("readers").names():
        assert main(["explain", name]) == 0, name
