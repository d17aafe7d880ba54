"""Every reader gives back what was written, whatever the bytes around it, and tells what it cannot use."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_samples import log_samples

from chattune.core.errors import ChattuneError, DataError
from chattune.core.part import kind
from chattune.dialogs.detect import detect, scores
from chattune.dialogs.dialog import Dialog, Drop
from chattune.dialogs.gathering import Account, Wanted, gathered
from chattune.dialogs.readers import Reader

FULL = os.environ.get("FULL") == "1"
NAMES = kind("readers").names()
Q, A, Q2, A2 = "Wie geht's, \"Anna\"? 你好吗 🙂", "Gut, danke; 很好!", "And: you?", "  Fine – thanks."

# name → file name, text, and what must come out of it as (role, content) pairs
SAMPLES: dict[str, tuple[str, str, list[list[tuple[str, str]]]]] = {
    "openai_messages": (
        "chat.jsonl",
        "\n".join(
            json.dumps({"messages": [{"role": r, "content": c} for r, c in own], "topic": "x"}, ensure_ascii=False)
            for own in ([("system", "Be kind."), ("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)])
        ) + "\n",
        [[("system", "Be kind."), ("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "sharegpt": (
        "share.json",
        json.dumps(
            [
                {"id": "a", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}], "tools": "[]"},
                {"conversations": [{"from": "human", "value": Q2}, {"from": "function_call", "value": "{}"},
                                   {"from": "observation", "value": "7"}, {"from": "gpt", "value": A2}]},
            ], ensure_ascii=False, indent=2,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "{}"), ("tool", "7"), ("assistant", A2)]],
    ),
    "alpaca": (
        "alpaca.json",
        json.dumps(
            [
                {"instruction": "Translate.", "input": Q, "output": A},
                {"instruction": Q2, "input": "", "output": A2, "history": [["one", "two"]], "system": "Short."},
            ], ensure_ascii=False,
        ),
        [
            [("user", f"Translate.\n\n{Q}"), ("assistant", A)],
            [("system", "Short."), ("user", "one"), ("assistant", "two"), ("user", Q2), ("assistant", A2)],
        ],
    ),
    "prompt_completion": (
        "faq.csv",
        'Id,Question,ANSWER,topic\n1,"Wie geht\'s, ""Anna""? 你好吗 🙂",Gut; danke,x\n2,"two\nlines",ok,\n',
        [[("user", Q), ("assistant", "Gut; danke")], [("user", "two\nlines"), ("assistant", "ok")]],
    ),
    "transcript": (
        "window.txt",
        f"Anna: {Q}\nBot: {A}\n\nAnna: first line\nsecond line\n[12:30] Ben：{Q2}\n---\nSupport: Hello?\nKim: hi\n",
        [
            [("user", Q), ("assistant", A)],
            [("user", "first line\nsecond line"), ("assistant", Q2)],
            [("assistant", "Hello?"), ("user", "hi")],
        ],
    ),
    "chatterbot": (
        "ai.yml",
        'categories:\n- AI\nconversations:\n- - "Wie geht\'s, \\"Anna\\"? 你好吗 🙂"\n  - Yes\n'
        "- - What is: this\n  - 22\n  - 1:30\n  - ok\n",
        [
            [("user", Q), ("assistant", "Yes")],
            [("user", "What is: this"), ("assistant", "22"), ("user", "1:30"), ("assistant", "ok")],
        ],
    ),
    "chitchat": (
        "part.json",
        json.dumps(
            {
                "one": {"messages": [[{"text": Q, "timestamp": "t", "sender": "s1"}, {"text": "hm", "timestamp": "t", "sender": "s1"}],
                                     [{"text": A, "timestamp": "t", "sender": "s2"}]], "ratings": {"x": 1}},
                "two": {"messages": [[{"text": Q2, "timestamp": "t", "sender": "s9"}],
                                     [{"text": "third", "timestamp": "t", "sender": "s8"}],
                                     [{"text": A2, "timestamp": "t", "sender": "s7"}]]},
            }, ensure_ascii=False,
        ),
        [[("user", Q), ("user", "hm"), ("assistant", A)], [("user", Q2), ("assistant", "third"), ("user", A2)]],
    ),
    "preference": (
        "pairs.jsonl",
        "\n".join(
            json.dumps(row, ensure_ascii=False)
            for row in (
                {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: no"},
                {"prompt": Q2, "chosen": A2, "rejected": "no"},
            )
        ) + "\n",
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "kto": (
        "judged.csv",
        'prompt,completion,label\n"Wie geht\'s, ""Anna""? 你好吗 🙂",Gut; danke,True\nAnd: you?,Go away.,False\n',
        [[("user", Q), ("assistant", "Gut; danke")], [("user", Q2), ("assistant", "Go away.")]],
    ),
    "self_instruct": (
        "seeds.jsonl",
        "\n".join(
            json.dumps(row, ensure_ascii=False)
            for row in (
                {"id": "s0", "instruction": Q, "instances": [{"input": "", "output": A}, {"input": "in", "output": A2}]},
                {"id": "s1", "instruction": Q2, "instances": [{"input": "", "output": A2}], "is_classification": False},
            )
        ) + "\n",
        [
            [("user", Q), ("assistant", A)], [("user", f"{Q}\n\nin"), ("assistant", A2)],
            [("user", Q2), ("assistant", A2)],
        ],
    ),
    "oasst": (
        "trees.jsonl",
        "\n".join(
            json.dumps({"message_tree_id": own, "prompt": {
                "message_id": own, "text": asked, "role": "prompter", "replies": [
                    {"message_id": f"{own}b", "text": "worse", "role": "assistant", "rank": 1, "replies": []},
                    {"message_id": f"{own}a", "text": said, "role": "assistant", "rank": 0, "replies": []},
                ]}}, ensure_ascii=False)
            for own, asked, said in (("t1", Q, A), ("t2", Q2, A2))
        ) + "\n",
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "sgd": (
        "dialogues_001.json",
        json.dumps(
            [
                {"dialogue_id": f"1_{number}", "services": ["Events_1"], "turns": [
                    {"speaker": "USER", "utterance": asked, "frames": []}, {"speaker": "SYSTEM", "utterance": said, "frames": []},
                ]} for number, (asked, said) in enumerate(((Q, A), (Q2, A2)))
            ], ensure_ascii=False, indent=2,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "taskmaster": (
        "data_01.json",
        json.dumps(
            [
                {"conversation_id": "dlg-1", "utterances": [
                    {"index": 0, "speaker": "USER", "text": Q}, {"index": 1, "speaker": "ASSISTANT", "text": A}]},
                {"conversation_id": "dlg-2", "context": json.dumps([{"role": "user", "text": Q2}]),
                 "generation": json.dumps({"role": "agent", "api": {"find": {"query": "x"}}}), "reward": 0.0},
            ], ensure_ascii=False, indent=4,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", '{"find": {"query": "x"}}')]],
    ),
    "kdconv": (
        "film.json",
        json.dumps(
            [
                {"name": "x", "messages": [
                    {"message": Q}, {"message": A, "attrs": [{"name": "x", "attrname": "类型", "attrvalue": "家庭"}]}]},
                {"name": "y", "messages": [{"message": Q2}, {"message": A2}]},
            ], ensure_ascii=False, indent=2,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "crosswoz": (
        "val.json",
        json.dumps(
            {
                str(number): {"goal": [], "messages": [
                    {"role": "usr", "content": asked, "dialog_act": [["Inform", "餐馆", "名称", "x"]]},
                    {"role": "sys", "content": said, "dialog_act": []}], "type": "单领域"}
                for number, (asked, said) in enumerate(((Q, A), (Q2, A2)), 70)
            }, ensure_ascii=False, indent=4,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", A2)]],
    ),
    "lccc": (
        "train.txt",
        "我 是 Anna , 你 好 吗 ？\t我 很 好 ， 谢 谢 你 iPhone 15 Pro\n为 什 么 ？\t不 知 道\t好 的\n",
        [
            [("user", "我是Anna ,你好吗？"), ("assistant", "我很好，谢谢你iPhone 15 Pro")],
            [("user", "为什么？"), ("assistant", "不知道"), ("user", "好的")],
        ],
    ),
    "persona_chat": (
        "train_self_original.txt",
        f"1 your persona: i know Anna.\n2 your persona: i like tea.\n3 {Q}\t{A}\t\tno|yes\n4 {Q2}\t{A2}\n"
        "1 your persona: i am.\n2 __SILENCE__\thi !\n3 hello\twhat ?\n",
        [
            [("system", "i know Anna.\ni like tea."), ("user", Q), ("assistant", A), ("user", Q2), ("assistant", A2)],
            [("system", "i am."), ("assistant", "hi !"), ("user", "hello"), ("assistant", "what ?")],
        ],
    ),
    "cornell_movie_dialogs": (
        "movie_conversations.txt",
        "u0 +++$+++ u2 +++$+++ m0 +++$+++ ['L1', 'L2']\nu0 +++$+++ u2 +++$+++ m0 +++$+++ ['L3', 'L4', 'L5']\n",
        [[("user", Q), ("assistant", A)], [("user", "one"), ("assistant", ""), ("user", A2)]],
    ),
    "message_table": (
        "export.csv",
        'chat_id,Sender,Role,Sent at,Body\n7,"Anna ""A""",customer,2024-01-02 10:00,"Wie geht\'s, ""Anna""? 你好吗 🙂"\n'
        "7,Ben,agent,2024-01-02 10:01,Gut; danke\n9,Kim,customer,2024-01-03 10:00,And: you?\n9,Ben,agent,2024-01-03 10:01,ok\n",
        [[("user", Q), ("assistant", "Gut; danke")], [("user", Q2), ("assistant", "ok")]],
    ),
    "plain_text": (
        "pages.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in (Q, f"Anna\n\n{A}")),
        [[("assistant", Q)], [("assistant", f"Anna\n\n{A}")]],
    ),
    "irc": (
        "2005-02-08.log",
        f"[10:00] <Anna> {Q}\n[10:01] <Ben> {A}\n=== Kim [k@h] has joined #c\n[23:00] <Anna> {Q2}\n[23:01] <Ben> ok\n",
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "whatsapp": (
        "_chat.txt",
        f"05/03/24, 10:11 - Anna: {Q}\n05/03/24, 10:12 - Ben: {A}\nsecond line\n"
        f"25/03/24, 22:11 - Anna: {Q2}\n25/03/24, 22:12 - Ben: ok\n",
        [[("user", Q), ("assistant", f"{A}\nsecond line")], [("user", Q2), ("assistant", "ok")]],
    ),
    "telegram": (
        "result.json",
        json.dumps(
            {"name": "Help", "type": "private_group", "id": 1, "messages": [
                {"id": number, "type": "message", "date": date, "from": name, "from_id": f"user{name}", "text": text}
                for number, (date, name, text) in enumerate(
                    (("2024-01-01T10:00:01", "Anna", Q), ("2024-01-01T10:01:00", "Ben", A),
                     ("2024-01-03T10:00:01", "Anna", Q2), ("2024-01-03T10:01:00", "Ben", "ok")))]},
            ensure_ascii=False, indent=1,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "slack": (
        "2024-01-01.json",
        json.dumps(
            [
                {"type": "message", "user": name, "text": text, "ts": f"170410{time}.000100"}
                for time, name, text in ((3200, "Anna", Q), (3230, "Ben", A), (9990, "Anna", Q2), (9999, "Ben", "ok"))
            ], ensure_ascii=False, indent=1,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "discord": (
        "help.json",
        json.dumps(
            {"guild": {"id": "1", "name": "G"}, "channel": {"id": "2", "type": "GuildTextChat", "name": "help"}, "messages": [
                {"id": str(number), "type": "Default", "timestamp": f"2024-01-0{day}T10:00:{number}0+00:00", "content": text,
                 "author": {"id": name, "name": name, "isBot": False}}
                for number, (day, name, text) in enumerate(((1, "Anna", Q), (1, "Ben", A), (3, "Anna", Q2), (3, "Ben", "ok")))]},
            ensure_ascii=False, indent=2,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "wechat": (
        "客人.txt",
        "".join(
            f"2023-05-0{day} 10:11:12 {name}\n{text}\n\n"
            for day, name, text in ((6, "Anna", Q), (6, "Ben", A), (8, "Anna", Q2), (8, "Ben", "ok"))
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "mbox": (
        "list.mbox",
        "".join(
            f"From x@y Mon Jan  1 1{number}:00:00 2024\nFrom: {name} <{name}@x.org>\nTo: list@x.org\nSubject: {subject}\n"
            f"Date: Mon, 01 Jan 2024 1{number}:00:00 +0000\nMessage-ID: <{number}@x>\n"
            + (f"In-Reply-To: <{number - 1}@x>\n" if number % 2 else "")
            + f'Content-Type: text/plain; charset="utf-8"\nContent-Transfer-Encoding: 8bit\n\n{text}\n\n'
            for number, (name, subject, text) in enumerate(
                (("Anna", "tea", Q), ("Ben", "Re: tea", A), ("Anna", "time", Q2), ("Ben", "Re: time", "ok")))
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "tickets": (
        "tickets.json",
        json.dumps(
            [
                {"id": number, "subject": "x", "requester_id": 1, "status": "solved", "comments": [
                    {"id": 1, "author_id": 1, "body": asked, "public": True, "created_at": "2024-01-01T10:00:00Z"},
                    {"id": 2, "author_id": 2, "body": answer, "public": True, "created_at": "2024-01-01T10:10:00Z"}]}
                for number, (asked, answer) in enumerate(((Q, A), (Q2, "ok")), 7)
            ], ensure_ascii=False, indent=1,
        ),
        [[("user", Q), ("assistant", A)], [("user", Q2), ("assistant", "ok")]],
    ),
    "forum_html": (
        "thread.html",
        "<!DOCTYPE html>\n<html><head><title>T</title></head><body>\n<h1>Anna asks</h1>\n"
        + "".join(
            f"<article class='message'><h4 class='message-name'>{name}</h4>\n<div class='bbWrapper'>{text}</div></article>\n"
            for name, text in (("Anna", Q), ("Ben", A))
        ) + "</body></html>\n",
        [[("user", f"Anna asks\n\n{Q}"), ("assistant", A)]],
    ),
    "forum_markdown": (
        "threads.md",
        f"# One\n\n**Anna** (2024-01-01 10:00):\n{Q}\n\n**Ben:** {A}\n\n# Two\n\n**Kim** (2024-01-02 10:00):\n{Q2}\n\n**Ben:** ok\n",
        [[("user", f"One\n\n{Q}"), ("assistant", A)], [("user", f"Two\n\n{Q2}"), ("assistant", "ok")]],
    ),
}  # fmt: skip
UNNAMED = {"plain_text"}  # every text is one: it is read where it is named
IN_BYTES = {"mbox"}  # each message names an encoding of its own
SAMPLES |= log_samples(Q, A, Q2, A2.strip())
# Files that a sample needs beside it.
BESIDE = {
    "cornell_movie_dialogs": {
        "movie_lines.txt": f"L2 +++$+++ u2 +++$+++ m0 +++$+++ BEN +++$+++ {A}\nL1 +++$+++ u0 +++$+++ m0 +++$+++ KIM +++$+++ {Q}\n"
        f"L5 +++$+++ u0 +++$+++ m0 +++$+++ KIM +++$+++ {A2}\nL4 +++$+++ u2 +++$+++ m0 +++$+++ BEN +++$+++\n"
        "L3 +++$+++ u0 +++$+++ m0 +++$+++ KIM +++$+++ one\n"
    }
}
# Files that hold good rows and broken ones: name, content, lines and reasons of what is dropped, and how many dialogs are kept.
GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
TURNS = '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'


def rows_of(*rows: Any) -> str:
    """Each row on a line of its own; what is text stands as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


BROKEN: dict[str, list[tuple[str, str | bytes, str, int]]] = {
    "openai_messages": [(
        "chat.jsonl",
        rows_of(GOOD, {"messages": "no"}, {"messages": [{"role": "wizard", "content": "x"}]},
                {"messages": [{"role": "user", "content": 7}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
                {"messages": [{"role": "user", "content": "x", "weight": -1}]}, "[1]", '{"messages": [{"role": "us', GOOD),
        "2 no_messages, 3 unknown_role, 4 wrong_type, 5 not_text, 6 wrong_type, 7 not_an_object, 8 broken_json",
        2,
    )],
    "sharegpt": [(
        "share.jsonl",
        rows_of(f'{{"conversations": {TURNS}}}', {"conversations": {}}, {"conversations": [{"from": "wizard", "value": "x"}]},
                {"conversations": [{"from": "human", "value": None}]}, {"conversations": [3]}, {}),
        "2 no_messages, 3 unknown_role, 4 wrong_type, 5 no_messages, 6 no_messages", 1,
    )],
    "alpaca": [(
        "alpaca.jsonl",
        rows_of({"instruction": "q", "output": "a"}, {"output": "a"}, {"instruction": "q", "output": ["a"]},
                {"instruction": "q", "output": "a", "history": "x"}, {"instruction": "q", "output": "a", "history": [["one"]]}, 3),
        "2 wrong_type, 3 wrong_type, 4 wrong_type, 5 wrong_type, 6 not_an_object", 1,
    )],
    "prompt_completion": [
        ("faq.csv", b'question,answer\nq,a\nonly one\nq,a,more\nq,"never closed\nq2,\0\0\nq3,caf\xe9\nq4,a\n',
         "3 wrong_columns, 4 wrong_columns, 5 broken_csv, 6 nul_bytes, 7 undecodable", 2),
        ("faq.jsonl", rows_of({"prompt": "q", "completion": "a"}, {"prompt": "q"}, {"prompt": "q", "completion": None}, [1]),
         "2 no_messages, 3 wrong_type, 4 not_an_object", 1),
    ],
    "message_table": [
        ("export.csv", "chat_id,sender,time,text\n7,Anna,2024-01-02 10:00,hi\n7,,2024-01-02 10:00,x\n,Ben,2024-01-02 10:00,x\n7,Ben\n"
         "7,Ben,2024-01-02 10:01,hello\n", "3 no_speaker, 4 no_conversation, 5 wrong_columns", 1),
        ("export.jsonl", rows_of({"chat_id": 7, "sender": "Anna", "text": "hi"}, {"chat_id": 7, "sender": "Ben", "text": [1]}, [3],
                                 *({"chat_id": 7, "sender": "Ben", "text": text} for text in "abcd")),
         "2 wrong_type, 3 not_an_object", 1),
    ],
    "preference": [(
        "pairs.jsonl",
        rows_of({"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a"},
                {"prompt": "q", "chosen": 7, "rejected": "b"}, {"chosen": "a", "rejected": "b"},
                {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 5},
                {"prompt": "q", "chosen": "a", "rejected": "b", "history": [["one"]]}, "null"),
        "2 no_choice, 3 wrong_type, 4 no_prompt, 5 no_choice, 6 wrong_type, 7 not_an_object", 1,
    )],
    "kto": [(
        "judged.jsonl",
        rows_of({"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "a", "label": "maybe"},
                {"prompt": "q", "label": False}, {"messages": [{"role": "user", "content": "q"}], "label": True},
                {"prompt": "q", "completion": None, "label": True}, {"prompt": "q", "completion": "a"}),
        "2 no_label, 3 no_messages, 4 no_reply, 5 wrong_type, 6 no_label", 1,
    )],
    "self_instruct": [(
        "seeds.jsonl",
        rows_of({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, {"instruction": "q", "instances": 3},
                {"instruction": "q", "instances": []}, {"instruction": "q", "instances": [7]}, {"instances": [{"output": "a"}]},
                {"instruction": "q", "instances": [{"output": "a"}, {"output": None}]}),
        "2 no_messages, 3 no_messages, 4 wrong_type, 5 wrong_type, 6 wrong_type", 1,
    )],
    "oasst": [(
        "trees.jsonl",
        rows_of({"message_tree_id": "t", "prompt": {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant"}]}},
                {"message_tree_id": "t", "prompt": 7}, {"prompt": {"text": "q", "role": "prompter", "deleted": True, "replies": []}},
                {"prompt": {"text": "q", "role": "prompter", "replies": "x"}},
                {"prompt": {"text": "q", "role": "wizard", "replies": []}},
                {"prompt": {"text": None, "role": "prompter", "replies": []}}, "7",
                {"message_tree_id": "u", "message_id": "m", "parent_id": "gone", "role": "assistant", "text": "a"}),
        "2 no_messages, 3 deleted, 4 wrong_type, 5 unknown_role, 6 wrong_type, 7 not_an_object, 8 no_parent",
        1,
    )],
    "sgd": [(
        "dialogues.jsonl",
        rows_of({"turns": [{"speaker": "USER", "utterance": "q"}, {"speaker": "SYSTEM", "utterance": "a"}]}, {"turns": None},
                {"turns": [{"speaker": "ROBOT", "utterance": "q"}]}, {"turns": [{"speaker": "USER", "utterance": None}]}),
        "2 no_messages, 3 unknown_role, 4 wrong_type", 1,
    )],
    "taskmaster": [(
        "data.jsonl",
        rows_of({"utterances": [{"speaker": "USER", "text": "q"}, {"speaker": "ASSISTANT", "text": "a"}]}, {"utterances": 3},
                {"utterances": [{"speaker": "wizard", "text": "q"}]}, {"context": "{", "generation": "{}", "reward": 1},
                {"context": "{}", "generation": "{}", "reward": 1}, {"context": "[]", "generation": '{"role": "agent", "text": "a"}'}),
        "2 no_messages, 3 unknown_role, 4 broken_json, 5 wrong_type, 6 no_label", 1,
    )],
    "kdconv": [(
        "film.jsonl",
        rows_of({"name": "x", "messages": [{"message": "q"}, {"message": "a"}]}, {"messages": 3}, {"messages": [{"message": None}]},
                {"messages": [{"message": "q", "attrs": 3}]}),
        "2 no_messages, 3 wrong_type, 4 wrong_type", 1,
    )],
    "crosswoz": [(
        "val.json",
        json.dumps({
            "1": {"messages": [{"role": "usr", "content": "q"}, {"role": "sys", "content": "a"}]}, "2": {"messages": [{"role": "x"}]},
            "3": {"messages": [{"role": "usr", "content": None}]}, "4": {"messages": 3}, "5": 5,
        }, indent=0),
        "14 unknown_role, 21 wrong_type, 29 no_messages, 32 not_an_object", 1,
    )],
    "lccc": [
        ("train.json", rows_of(["你 好", "好 的"], {"x": 1}, ["你", 3]), "2 wrong_type, 3 wrong_type", 1),
        ("train.txt", "你 好\t好 的\n".encode() + b"\0\0\n" + b"\xff \xfe\n", "2 nul_bytes, 3 undecodable", 1),
    ],
    "persona_chat": [
        ("train.txt", "1 your persona: i am.\n2 hi\thello\nno number\n3 q\ta\n", "3 no_number", 1),
        ("train.jsonl", rows_of({"personality": ["x"], "utterances": [{"history": ["q"], "candidates": ["a"]}]},
                                {"personality": ["x"], "utterances": []}, {"personality": ["x"], "utterances": [{"history": "q"}]},
                                {"personality": 3, "utterances": [{"history": ["q"], "candidates": ["a"]}]}),
         "2 no_messages, 3 no_messages, 4 wrong_type", 1),
    ],
    "cornell_movie_dialogs": [(
        "movie_conversations.txt",
        "u0 +++$+++ u2 +++$+++ m0 +++$+++ ['L1', 'L2']\nu0 +++$+++ u2\nu0 +++$+++ u2 +++$+++ m0 +++$+++ ['L1', 'L99']\n",
        "2 no_messages, 3 missing_line", 1,
    )],
    "chatterbot": [(
        "ai.yml", "conversations:\n- - q\n  - a\n- alone\n- - q\n  - - deep\n", "4 not_a_list, 6 wrong_type", 1,
    )],
    "chitchat": [(
        "part.json",
        rows_of({"messages": [[{"text": "q", "sender": "a"}], [{"text": "a", "sender": "b"}]]}, {"messages": "x"},
                {"messages": [[7]]}, [3]),
        "2 no_messages, 3 wrong_type, 4 no_messages", 1,
    )],
    "transcript": [(
        "window.txt", b"who says this\nAnna: hi\nBen: hello\n\0\0\0\n\nnobody\nAnna: caf\xe9\nAnna: q\nBen: a\n",
        "1 no_speaker, 4 nul_bytes, 6 no_speaker, 7 undecodable", 2,
    )],
    "plain_text": [("pages.jsonl", rows_of({"text": "some text"}, {"text": 3}, {"text": " "}, {"other": "x"}),
                    "2 wrong_type, 3 empty, 4 wrong_type", 1)],
}  # fmt: skip
TEXT = "\n".join(text for _, text, _ in SAMPLES.values())
NOISE = [*TEXT.split("\n"), "{", "[", "]", "}", '{"messages": 3}', "- - x", ",", '"', "null", "a,b", ": ", "\x00"]
PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf0\x9f", b"\xc2\x85", b"\xe2\x80\xa8", b"\r", b"\r\n", b"\n\n",
    b"\t", b"",
    b"{", b"}", b"[", b"]", b'"', b"\\", b"'", b"<", b">", b":", b",", b"- ", b"&#0;", b"\\ud800", b"null", b"NaN", b"-0", b"1e999",
    b"9" * 5000, b"{" * 2000, b'[{"a":' * 500, b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b" +++$+++ ", b"&a *a",
    b"!!python/object:os.system", b"99/99/9999", b"From x\n",
)  # fmt: skip
NOT_TEXT = [b"\x7fELF\x02\x01\x01\0\0\0" * 40, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, "x: 你好\n".encode("gb18030")]


def reader_of(name: str, **changes: object) -> Reader:
    part = kind("readers").load(name).model_validate(changes)
    assert isinstance(part, Reader)
    return part


def written(folder: Path, name: str, content: bytes | None = None, encoding: str = "utf-8") -> Path:
    file, text, _ = SAMPLES.get(name, ("some.txt", TEXT, []))
    path = folder / file
    path.write_bytes(text.encode() if content is None else content)
    for beside, text in BESIDE.get(name, {}).items():
        (folder / beside).write_bytes(text.encode(encoding))
    return path


def said(items: list[Dialog | Drop]) -> list[list[tuple[str, str]]]:
    return [[(message.role, message.content) for message in item.messages] for item in items if isinstance(item, Dialog)]


def attempted(reader: Reader, path: Path) -> tuple[list[Dialog | Drop], ChattuneError | None]:
    """What the reader gives before it ends or raises an error of ours, and that error."""
    items: list[Dialog | Drop] = []
    try:
        items.extend(reader.read(path))
    except ChattuneError as error:
        return items, error
    return items, None


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", SAMPLES)
def test_what_was_written_comes_back(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    items = list(reader_of(name).read(path))
    assert said(items) == SAMPLES[name][2]
    assert all(isinstance(item, Dialog) and item.file == str(path) and item.line >= 1 and item.source for item in items)
    assert [item.line for item in items] == sorted(item.line for item in items)
    assert len({item.id for item in items if isinstance(item, Dialog)}) == len(items)


def test_every_reader_has_a_sample() -> None:
    assert set(SAMPLES) == set(NAMES) and set(BROKEN) <= set(NAMES)


@pytest.mark.requirement("R001")
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in BROKEN.items() for case in cases],
                         ids=[f"{name}-{case[0]}" for name, cases in BROKEN.items() for case in cases])  # fmt: skip
def test_what_is_broken_is_dropped_with_its_line_and_the_rest_is_kept(
    name: str, case: tuple[str, str | bytes, str, int], tmp_path: Path
) -> None:
    file, content, dropped, kept = case
    written(tmp_path, name)
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items, error = attempted(reader_of(name), path)
    assert error is None
    drops = [item for item in items if isinstance(item, Drop)]
    assert ", ".join(f"{drop.line} {drop.reason}" for drop in drops) == dropped
    assert all(drop.file == str(path) and drop.detail for drop in drops)
    assert sum(isinstance(item, Dialog) for item in items) == kept == len(items) - len(drops)


@pytest.mark.requirement("R001")
@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - UNNAMED))
def test_its_own_format_is_detected(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    assert detect(path).name == name, scores(path)
    zipped = path.with_name(path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert detect(zipped).name == name


@pytest.mark.requirement("R001")
@pytest.mark.parametrize(("name", "disguise"), [
    (name, disguise) for name in SAMPLES for disguise in ("bom", "crlf", "gzip", "all", "utf-16", "gb18030")
    if name not in IN_BYTES or disguise not in ("utf-16", "gb18030")
])  # fmt: skip
def test_bytes_around_the_text_change_nothing(name: str, disguise: str, tmp_path: Path) -> None:
    text = SAMPLES[name][1]
    encoding = disguise if disguise in ("utf-16", "gb18030") else "utf-8"
    content = (text.replace("\n", "\r\n") if disguise in ("crlf", "all") else text).encode(encoding)
    content = b"\xef\xbb\xbf" + content if disguise in ("bom", "all") else content
    content = gzip.compress(content) if disguise in ("gzip", "all") else content
    reader = reader_of(name, encoding=encoding)
    plain = list(reader_of(name).read(written(tmp_path, name)))
    assert list(reader.read(written(tmp_path, name, content, encoding))) == plain
    assert name in UNNAMED or detect(written(tmp_path, name, content, encoding), encoding).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("disguise", ["plain", "gzip"])
def test_a_file_that_breaks_off_anywhere_is_told_and_what_stands_before_is_kept(name: str, disguise: str, tmp_path: Path) -> None:
    whole = written(tmp_path, name).read_bytes()
    expected = said(list(reader_of(name).read(written(tmp_path, name))))
    for cut in range(0, len(whole), 3):
        path = written(tmp_path, name, gzip.compress(whole[:cut]) if disguise == "gzip" else whole[:cut])
        items, error = attempted(reader_of(name), path)
        if error is not None:
            assert isinstance(error, DataError) and str(path) in str(error.path) and error.hint
            continue
        assert all(isinstance(item, (Dialog, Drop)) and item.file == str(path) and item.line >= 1 for item in items)
        # Everything but the conversation that was cut stands as it was written.
        assert said(items)[:-1] == expected[: max(0, len(said(items)) - 1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_gzip_file_is_told(name: str, tmp_path: Path) -> None:
    whole = gzip.compress((SAMPLES.get(name, ("", TEXT, []))[1] * 50).encode())
    for damaged in (whole[: len(whole) // 2], whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]):
        path = written(tmp_path, name, damaged)
        with pytest.raises(DataError) as caught:
            list(reader_of(name).read(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", NOT_TEXT, ids=["elf", "png", "gb18030"])
def test_bytes_that_are_no_text_are_refused_with_their_place(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    for attempt in (lambda: list(reader_of(name).read(path)), lambda: detect(path)):
        with pytest.raises(DataError) as caught:
            attempt()
        assert str(path) in (caught.value.path or "") and caught.value.hint


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_gives_no_conversation(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    items, error = attempted(reader_of(name), path)
    assert items == []
    assert error is None or (isinstance(error, DataError) and str(path) in str(error.path))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(reader_of(name).read(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_longer_than_the_limit_is_read(name: str, tmp_path: Path) -> None:
    _, text, _ = SAMPLES.get(name, ("some.txt", TEXT, []))
    path = written(tmp_path, name, text.replace("Anna", "A" * 5000).encode())
    for beside in BESIDE.get(name, {}):
        (tmp_path / beside).write_text((tmp_path / beside).read_text("utf-8").replace("Anna", "A" * 5000), "utf-8")
    items, error = attempted(reader_of(name, record_limit=1024), path)
    if error is not None:
        assert isinstance(error, DataError) and str(path) in str(error.path) and error.hint
        return
    assert any(isinstance(item, Drop) for item in items)
    assert all(len(content) <= 1024 for own in said(items) for _, content in own)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.sampled_from(NOISE)))
def test_any_text_gives_dialogs_drops_or_an_error_of_ours(name: str, noise: list[str], tmp_path: Path) -> None:
    path = tmp_path / "noise.txt"
    path.write_text("\n".join(noise), "utf-8")
    items, error = attempted(reader_of(name), path)
    assert error is None or str(path) in str(error.path)
    for item in items:
        assert 1 <= item.line <= len(noise) + 1
        assert isinstance(item, Dialog) or (item.reason.isidentifier() and len(item.detail) < 400)
    head = path.read_text("utf-8")
    assert 0.0 <= reader_of(name).score(path, head) <= 1.0


@st.composite
def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """A sample with some of its bytes exchanged, or bytes of any kind."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(changed)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=5) | st.sampled_from(NOISE).map(str.encode))
        changed[place : place + draw(st.integers(0, 25))] = piece * draw(st.integers(1, 3))
    return bytes(changed)


@pytest.mark.requirement("R001", "must-10")
@pytest.mark.parametrize("name", NAMES)
def test_spoilt_files_lose_no_row_without_a_reason_and_raise_nothing_but_errors_of_ours(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    whole, reader = path.read_bytes(), reader_of(name)

    @settings(max_examples=1500 if FULL else 30, deadline=None)
    @given(content=spoilt(whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        # A file that looks packed is unpacked, and its lines cannot be counted here.
        last = content.count(b"\n") + content.count(b"\r") + 1 if content[:2] not in (b"\x1f\x8b", b"PK", b"BZ") else 10**9
        items, error = attempted(reader, path)
        assert error is None or (str(path) in str(error.path) and error.hint and "\n" not in str(error))
        for item in items:
            assert item.file == str(path) and 1 <= item.line <= last
            assert isinstance(item, Dialog) or (item.reason.isidentifier() and len(item.detail) < 400)
        account, found = Account(), []
        with contextlib.suppress(DataError):
            found.extend(gathered(Wanted((str(path),), reader), account))
        dialogs = [item for item in found if isinstance(item, Dialog)]
        # What is read is kept or left out for a reason, and what stands before an error is the same as without one.
        assert account.read == len(items) == len(found) == len(dialogs) + account.reasons.total()
        messages = account.messages
        assert messages.read == sum(len(item.messages) for item in items if isinstance(item, Dialog))
        assert messages.read == messages.kept + messages.empty + messages.joined + messages.dropped
        assert len({dialog.id for dialog in dialogs}) == len(dialogs)
        assert all(json.loads(dialog.to_json())["id"] == dialog.id for dialog in dialogs)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_foreign_formats_score_below_the_right_one(name: str, tmp_path: Path) -> None:
    for other, (file, text, _) in SAMPLES.items():
        if other != name and other not in UNNAMED:
            path = tmp_path / file
            path.write_text(text, "utf-8")
            assert reader_of(name).score(path, text) < reader_of(other).score(path, text) - 0.05
