"""The command line: quick without torch, one line for each mistake, results on stdout, right exit codes."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from material import THINGS, TINY, write_raw_logs

import chattune
from chattune.cli import COMMANDS, main
from chattune.core.artifact import MANIFEST, PLAN
from chattune.story import Result

ENTRY = [sys.executable, "-m", "chattune.cli"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of conversations, good and bad."""
    monkeypatch.chdir(tmp_path)
    good = write_raw_logs(tmp_path / "ok.txt").read_text()
    rows = [
        json.dumps({"messages": [{"role": "user", "content": f"what of {t}, {u}?"}, {"role": "assistant", "content": f"{t}, always"}]})
        for t, u in zip(THINGS, reversed(THINGS), strict=True)
    ]
    contents = {
        "empty.jsonl": b"",
        "blank.txt": b"\n \n",
        "binary.jsonl": bytes(range(256)) * 20,
        "latin.txt": good.replace("e", "\xe9").encode("latin-1"),
        "bom.txt": b"\xef\xbb\xbf" + good.replace("\n", "\r\n").encode(),
        "good.txt.gz": gzip.compress(good.encode()),
        "cut.txt.gz": gzip.compress(good.encode())[:200],
        "cut.jsonl": ("\n".join(rows) + "\n" + rows[0][:30]).encode(),
        "noreply.jsonl": b'{"messages":[{"role":"user","content":"hello there"}]}\n',
        "small.txt": b"Anna: hi\nBot: hello\n",
        "misspelt.yaml": b"collect:\n  sources: [ok.txt]\ntrain:\n  optimizer:\n    lrr: 1\n",
        "section.yaml": b"colect:\n  sources: [ok.txt]\n",
        "twice.yaml": b"train:\n  steps: 1\n  steps: 2\n",
        "broken.yaml": b"train: [1\n",
        "list.yaml": b"- train\n",
        "tab.yaml": b"collect:\n\tsources: [ok.txt]\n",
        "nul.yaml": "# zuerst: ä\nseed: 1\nname: \0\n".encode(),
        "binary.yaml": b"\xff\xfe\x00\x01",
        "vocabulary.yaml": b"collect:\n  sources: [ok.txt]\nprepare:\n  vocabulary: 100000\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return tmp_path


MISTAKES = [
    # command, exit code, what the last line on stderr says
    ("collect nowhere.jsonl", 1, r"nowhere\.jsonl: does not exist\."),
    ("collect ok.tx", 1, r"ok\.tx: does not exist\. Did you mean 'ok\.txt'\?"),
    ("collect *.nothing", 1, r"matches no file"),
    ("collect empty.jsonl", 1, r"empty\.jsonl: holds no text\."),
    ("collect blank.txt", 1, r"blank\.txt: holds no text\."),
    ("collect binary.jsonl", 1, r"binary\.jsonl: is binary \(not text\)\. Leave it out"),
    ("collect latin.txt", 1, r"latin\.txt:1: is not utf-8: byte 0xe9 cannot be read\. Name its encoding: collect\.encoding="),
    ("collect cut.txt.gz", 1, r"cut\.txt\.gz: is a damaged gzip file"),
    ("collect noreply.jsonl", 1, r"noreply\.jsonl: nothing usable among 1 conversations: 1 no_reply\."),
    ("collect small.txt", 1, r"too few to split\. Add conversations"),
    ("collect folder", 1, r"folder: holds no file that could be conversations\."),
    ("collect ok.txt collect.format=sharegptt", 2, r"collect\.format: .* Did you mean 'sharegpt'\?"),
    ("collect ok.txt collect.format=alpaca", 1, r"ok\.txt: nothing usable .*Name it with collect\.format="),
    ("collect ok.txt split.shares=[0.5,0.5,0.5]", 2, r"split\.shares: .* three shares above 0 with the sum 1"),
    ("collect ok.txt collect.encoding=utf9", 2, r"collect\.encoding: 'utf9': should be an encoding"),
    ("collect ok.txt collect.sorces=x", 2, r"collect\.sorces: no setting is called 'sorces'\. Did you mean 'sources'\?"),
    ("collect ok.txt --name ../x", 2, r"--name: '\.\./x' cannot name a run\."),
    ("collect ok.txt --nam x", 2, r"no option is called '--nam'\. Did you mean '--name'\?"),
    ("collect ok.txt --recipe misspelt.yaml", 2, r"train\.optimizer\.lrr"),
    ("run misspelt.yaml", 2, r"misspelt\.yaml:5: train\.optimizer\.lrr: no setting is called 'lrr'\. Did you mean 'lr'\?"),
    ("run section.yaml", 2, r"section\.yaml:1: colect: no section is called 'colect'\. Did you mean 'collect'\?"),
    ("run twice.yaml", 2, r"twice\.yaml:3: 'steps' stands here and in line 2\."),
    ("run broken.yaml", 2, r"broken\.yaml:2: is not valid YAML"),
    ("run tab.yaml", 2, r"tab\.yaml:2: is not valid YAML: .* Indent with spaces, not with tabs\."),
    ("run nul.yaml", 2, r"nul\.yaml:3: holds the character U\+0000, which YAML does not allow\. Take it out\."),
    ("run list.yaml", 2, r"list\.yaml: holds a list, not sections\."),
    ("run binary.yaml", 2, r"binary\.yaml: cannot be read as a recipe"),
    ("run nowhere.yaml", 2, r"nowhere\.yaml: no such recipe\."),
    ("run folder", 2, r"folder: no such recipe\."),
    ("run demmo", 2, r"demmo: no such recipe\. Did you mean 'demo'\?"),
    ("run vocabulary.yaml", 2, r"prepare\.vocabulary: the data supports \d+ ids, not 100000\. Set prepare\.vocabulary=\d+ or less"),
    ("run demo train.steps=0", 2, r"train\.steps: 0: input should be greater than or equal to 1\."),
    ("run demo train.steps=many", 2, r"train\.steps: 'many': input should be a valid integer"),
    ("run demo train.clip=-1", 2, r"train\.clip: -1: input should be greater than or equal to 0\."),
    ("run demo train.steps=3", 2, r"train: steps and minutes contradict one another"),
    ("run demo train.optimizer=adamv", 2, r"train\.optimizer: 'adamv': .* Did you mean 'adamw'\?"),
    ("run demo train.optimizer.muon=1", 2, r"train\.optimizer\.muon: no setting is called 'muon'"),
    ("run demo train.regularizers.label_smoothin.strength=1", 2, r"train\.regularizers.*Did you mean 'label_smoothing'\?"),
    ("run demo train.regularizers.label_smoothing.strength=7", 2, r"label_smoothing\.strength: 7: input should be less"),
    ("run demo model.size=giant", 2, r"model\.size: 'giant': input should be"),
    ("run demo model.heads=3", 2, r"model\.heads: 3: must divide"),
    ("run demo modle.size=tiny", 2, r"modle: no section is called 'modle'\. Did you mean 'model'\?"),
    ("run demo seed=x", 2, r"seed: 'x': input should be a valid integer"),
    ("run demo train.steps", 2, r"'train\.steps' is not an override\. Write it like"),
    ("run demo --until trian", 2, r"--until: no stage is called 'trian'\. Did you mean 'train'\?"),
    ("run demo --name -x", 2, r""),
    ("run demo --dry-run --name ../x", 2, r"--name: '\.\./x' cannot name a run\."),
    ("demo --dry-run --name ../x", 2, r"--name: '\.\./x' cannot name a run\."),
    ("run demo --dry-run --until trian", 2, r"--until: no stage is called 'trian'\. Did you mean 'train'\?"),
    ("run demo --dry-run --until prepare", 2, r"--until: --dry-run says what training costs, and prepare comes before it\."),
    ("collect ok.txt seed=x", 2, r"seed: 'x': input should be a valid integer"),
    ("keys list team", 2, r"NAME: `chattune keys list` lists all keys, not 'team' alone\."),
    ("keys list --requests 3", 2, r"--requests: belongs to a key that is made, not to `chattune keys list`\."),
    ("keys revoke team --scopes chat", 2, r"--scopes: belongs to a key that is made, not to `chattune keys revoke`\."),
    ("keys create team --scopes chta", 2, r"--scopes: no scope is called 'chta'\. Did you mean 'chat'\?"),
    ("data new new.txt --sample 30", 2, r"--sample: belongs to `chattune data report`\. Leave it out\."),
    ("data new new.txt --against ok.txt", 2, r"--against: belongs to `chattune data report`\. Leave it out\."),
    ("serve --upstream a=http://127.0.0.1:1/v1 --speculate lookup", 2, r"--speculate: acts on runs, and only models of other servers"),
    ("serve --upstream a=http://127.0.0.1:1/v1 --weights int8", 2, r"--weights: acts on runs, and only models of other servers"),
    ("--home=elsewhere show nowhere", 2, r"no run is called 'nowhere' in elsewhere\. Make one with `chattune demo`"),
    ("run", 2, r"RECIPE"),
    ("demo --lang fr", 2, r"[Ii]nvalid value .*fr.* for --lang"),
    ("demo --dry-rum", 2, r"no option is called '--dry-rum'\. Did you mean '--dry-run'\?"),
    ("prepare nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("train nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("evaluate nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("chat nowhere --prompt hello", 2, r"no run is called 'nowhere' in runs"),
    ("chat nowhere --temperature hot", 2, r"--temperature"),
    ("resume nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("show nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("diff nowhere elsewhere", 2, r"no run is called 'nowhere' in runs"),
    ("tree nowhere", 2, r"no run is called 'nowhere' in runs"),
    ("list optimisers", 2, r"no kind of part is called 'optimisers'\. Did you mean 'optimizers'\?"),
    ("list schedules more", 2, r"more"),
    ("explain adamv", 2, r"nothing is called 'adamv'\. Did you mean 'adamw'\?"),
    ("explain train.optimizer.lrr", 2, r"train\.optimizer\.lrr: no setting is called 'lrr'\. Did you mean 'lr'\?"),
    ("explain train.optimizer.lr.more", 2, r"no setting is called 'more'"),
    ("explain optimizers/adamv", 2, r"optimizers has no part called 'adamv'\. Did you mean 'adamw'\?"),
    ("explain seed.more", 2, r"'seed' is a value and has no settings"),
    ("trian", 2, r"no command is called 'trian'\. Did you mean 'train'\?"),
    ("completion tcsh", 2, r"no completion for 'tcsh'"),
    ("--jsn", 2, r"no option is called '--jsn'\. Did you mean '--json'\?"),
]


@pytest.mark.requirement("U3", "I33")
@pytest.mark.parametrize(("command", "code", "says"), MISTAKES, ids=[command for command, *_ in MISTAKES])
def test_a_mistake_is_told_in_one_line_with_a_way_out(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, says: str
) -> None:
    assert main(command.split()) == code
    out, err = capsys.readouterr()
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("chattune: ")
    assert re.search(says, last), last
    assert "Traceback" not in err
    assert out == ""
    assert len(last) < 400
    assert not re.search(r"pydantic|ValidationError|function-plain|Errno|\bNone\b", last), last
    # And for machines: one object on the last line of stdout, the same exit code.
    assert main([*command.split(), "--json"]) == code
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error.keys() == {"path", "value", "rule", "hint"}
    assert error["rule"]
    # A plan that can never be answered does not stay behind as unfinished work.
    runs = place / "runs"
    assert all((run / MANIFEST).exists() for run in runs.iterdir() if (run / PLAN).exists()) if runs.exists() else True


@pytest.mark.parametrize("source", ["ok.txt", "bom.txt", "good.txt.gz", "cut.jsonl"])
def test_unusual_but_good_files_are_read_and_everything_is_counted(
    place: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    assert main(["collect", source, "--json", "-q"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] == len(THINGS)
    assert counts["dropped"] == ({"broken_json": 1} if source == "cut.jsonl" else {})
    dropped = next((place / "runs").glob("collect-*")) / "dropped.jsonl"
    if source == "cut.jsonl":
        lost = json.loads(dropped.read_text())
        assert (lost["file"], lost["line"]) == ("cut.jsonl", len(THINGS) + 1)


def test_a_line_of_100_megabytes_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = '{"messages": [{"role": "user", "content": "what of %s?"}, {"role": "assistant", "content": "%s!"}]}\n'
    rows = [said % (thing, thing) for thing in THINGS]
    logs = tmp_path / "long.jsonl"
    with logs.open("w") as file:
        file.writelines(rows[:20])
        file.write(rows[20].replace("!", "x" * (100 << 20)))
        file.writelines(rows[21:])
    assert main(["collect", str(logs), "--home", str(tmp_path / "runs"), "--json", "-q"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts == {"read": len(THINGS), "kept": len(THINGS) - 1, "dropped": {"line_too_long": 1}}
    lost = json.loads((next((tmp_path / "runs").glob("collect-*")) / "dropped.jsonl").read_text())
    assert (lost["file"], lost["line"]) == (str(logs), 21)
    logs.unlink()


def _quick(*words: str) -> tuple[float, int, str]:
    """(processor seconds with the interpreter's start, exit code, output) of a command; it must import nothing heavy."""
    script = (
        "import sys, time; from chattune.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'sacrebleu', 'transformers', 'sklearn'} & set(sys.modules))\n"
        "print(f'@{time.process_time()} {code} {heavy}', file=sys.stderr)\n"
    )
    # As installed, with compiled files beside the sources: without them a third of a second goes into compiling.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True, env=environment)
    took, code, heavy = done.stderr.rsplit("@", 1)[1].strip().split(" ", 2)
    assert heavy == "[]"
    return float(took), int(code), done.stdout + done.stderr


@pytest.mark.requirement("U2")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "evaluate"), (["--version"], 0, chattune.__version__), ([], 0, "try this"),
        (["list"], 0, "regularizers"),
        (["list", "regularizers"], 0, "label_smoothing"), (["trian"], 2, "Did you mean 'train'?"),
        (["completion", "zsh"], 0, "compdef"),
        (["list", "optimisers"], 2, "Did you mean"), (["explain", "label_smoothing"], 0, "strength"), (["runs"], 0, "No runs"),
        (["explain", "train.optimizer.lr"], 0, "learning rate"), (["run", "demo", "trian.x=1"], 2, "train"),
        (["run", "demo", "train.optimizer=adamv"], 2, "adamw"), (["run", "demo", "train.optimizer.lrr=1"], 2, "'lr'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_help_lists_and_mistakes_answer_at_once_without_torch(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    words = [*words, *(["--home", str(tmp_path)] if words == ["runs"] else [])]
    runs = [_quick(*words)]
    while runs[-1][0] > 0.5 and len(runs) < 4:  # neighbours on the same core cost time: the best counts
        runs.append(_quick(*words))
    took, got, output = min(runs)
    print(f"chattune {' '.join(words)}: {took:.2f} s")
    assert got == code
    assert says in output
    # 0.5 s on an idle core (0.25 to 0.45 measured), and twice that for a completion script, which needs the options of every
    # command; a core shared with other tests is up to 1.6 times slower.
    assert took < (1.6 if words[0:1] == ["completion"] else 0.8)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_show_costs_no_answer_and_changes_no_data(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    told, plain, wrong = (
        subprocess.run([*ENTRY, *words], capture_output=True, env=environment, cwd=tmp_path, check=False)
        for words in (["list", "optimizers"], ["list", "optimizers", "--json"], ["show", "größe", "--json"])
    )
    assert told.returncode == 0 and not told.stderr and b"adamw" in told.stdout
    usual = subprocess.run([*ENTRY, "list", "optimizers", "--json"], capture_output=True, cwd=tmp_path, check=True)
    assert plain.returncode == 0 and json.loads(plain.stdout) == json.loads(usual.stdout)
    assert wrong.returncode == 2 and json.loads(wrong.stdout.decode(encoding))["error"]["value"] == "größe"
    assert b"Traceback" not in wrong.stderr


def test_a_conversation_is_no_object_and_that_is_told_before_a_model_is_sought(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "nowhere", "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == "chattune: --json: needs --prompt. Add --prompt TEXT.\n"
    assert json.loads(out)["error"]["path"] == "--json"


def test_errors_about_numbers_that_json_lacks_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo", "train.clip=.nan", "--json"]) == 2
    out = capsys.readouterr().out

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(out, parse_constant=refuse)["error"]["value"] == "nan"


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["list", "--help"]])
def test_help_and_version_end_with_an_object_for_machines(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"version": chattune.__version__}


def test_bare_chattune_is_six_lines_with_the_one_command_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "chattune demo" in lines[1]


@pytest.mark.parametrize("command", [*COMMANDS, "completion"])
def test_every_command_has_help_that_names_the_common_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--json", "--home", "--quiet", "--debug"):
        assert option in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "evaluate" in script
    if shell == "bash" and shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# A finished story


def _answer(told: Result, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main([*words, "--json", "--home", str(told.run.parent)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def _said(told: Result, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words, "--home", str(told.run.parent)]) == 0
    return capsys.readouterr().out


def test_show_says_the_scores_beside_the_baselines_and_the_same_to_machines(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    data = _answer(told, capsys, "show", "first")
    assert data.keys() >= {"run", "report", "seconds", "parameters", "metrics", "baselines", "split", "counts"}
    assert Path(str(data["run"])) == told.run
    text = _said(told, capsys, "show", told.runs["evaluate"].name)
    for word in ("bits_per_byte", "retrieval", "Worth talking to?", "report.html", "row-random"):
        assert word in text
    assert _answer(told, capsys, "show", told.runs["collect"].name)["counts"]


def test_options_may_stand_before_the_command(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--home", str(told.run.parent), "show", "first"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "train"


def test_runs_lists_every_run_with_its_name(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    listed = _answer(told, capsys, "runs")["runs"]
    assert isinstance(listed, list)
    assert {row["run"] for row in listed} >= {path.name for path in told.runs.values()}
    assert next(row for row in listed if row["run"] == told.run.name)["names"] == ["first"]


def test_tree_leads_back_to_the_raw_logs(told: Result, raw_logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _said(told, capsys, "tree", told.run.name)
    order = [told.run.name, told.runs["prepare"].name, told.runs["split"].name, told.runs["collect"].name, "window.txt"]
    assert sorted(order, key=text.index) == order
    assert _answer(told, capsys, "tree", "first")["inputs"]


def test_diff_prints_the_settings_and_metrics_that_differ(told: Result, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = tmp_path / "runs"
    shutil.copytree(told.run.parent, home)
    short = [word for word in TINY if not word.startswith("train.steps")]
    settings = [*short, "train.steps=5", "train.optimizer=adamw"]
    assert main(["train", told.runs["prepare"].name, *settings, "--home", str(home), "--name", "second"]) == 0
    capsys.readouterr()
    assert main(["diff", "first", "second", "--home", str(home), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["settings"]["train.steps"] == [20, 5]
    assert data["settings"]["train.optimizer.name"] == ["muon", "adamw"]
    assert "model.width" not in data["settings"]
    assert main(["diff", "first", "first", "--home", str(home)]) == 0
    assert "No difference." in capsys.readouterr().out
    assert main(["diff", "first", told.runs["collect"].name, "--home", str(home)]) == 1


@pytest.mark.requirement("R210")
def test_chat_answers_a_prompt_the_same_way_for_the_same_seed(told: Result, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("chat", "first", "--prompt", "do you like apples?", "--max-tokens", "8")
    first = _answer(told, capsys, *words, "--seed", "7")
    assert first.keys() >= {"reply", "tokens", "finish_reason"}
    assert first["finish_reason"] in ("stop", "length")
    assert _answer(told, capsys, *words, "--seed", "7") == first
    others = [_answer(told, capsys, *words, "--seed", str(seed), "--temperature", "2.0")["reply"] for seed in range(4)]
    assert len(set(others)) > 1
    assert _said(told, capsys, *words, "--seed", "7").rstrip("\n") == str(first["reply"]).rstrip("\n")
    assert main(["chat", "first", "--prompt", "x", "--top-p", "2", "--home", str(told.run.parent)]) == 2
    assert "--top-p: 2.0: input should be less than or equal to 1." in capsys.readouterr().err


def test_chat_reads_a_pipe(told: Result) -> None:
    command = [*ENTRY, "chat", "first", "--max-tokens", "4", "--home", str(told.run.parent)]
    done = subprocess.run(command, input="do you like apples?\nand kites?\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or done.stdout.count("\n") >= 2


@pytest.mark.requirement("U1")
def test_the_demo_answers_three_prompts_three_times_and_says_what_is_next(
    raw_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs"
    words = ["demo", f"collect.sources={raw_logs}", *TINY, "--home", str(home)]
    assert main(words) == 0
    out = capsys.readouterr().out
    asked = [line for line in out.splitlines() if line.startswith("> ")]
    assert len(asked) == 3
    for when in ("before", "half-way", "after"):
        assert out.count(f"  {when} ") == 3
    for word in ("bits_per_byte", "retrieval", "report.html", "chattune chat demo"):
        assert word in out
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert data.keys() >= {"run", "report", "seconds", "parameters", "metrics", "baselines", "split", "counts"}
    assert data["seconds"].keys() >= {"train", "total"}


def test_resume_finds_a_finished_story_and_an_unfinished_run(told: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _answer(told, capsys, "resume", "first")["finished"]
    home = tmp_path / "runs"
    shutil.copytree(told.run.parent, home)
    (home / told.runs["evaluate"].name / MANIFEST).unlink()  # as if it had been stopped before its last write
    assert main(["show", told.runs["evaluate"].name, "--home", str(home)]) == 0
    assert f"unfinished: `chattune resume {told.runs['evaluate'].name}`" in capsys.readouterr().out
    assert main(["resume", "first", "--home", str(home)]) == 0
    assert (home / told.runs["evaluate"].name / MANIFEST).exists()


@pytest.mark.requirement("U4", "R076")
def test_dry_run_says_the_cost_and_makes_nothing(raw_logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "runs"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"collect": {"sources": [str(raw_logs)]}}))
    assert main(["run", str(recipe), *TINY, "--dry-run", "--json", "--home", str(home)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() >= {"parameters", "training_tokens", "tokens", "steps", "seconds", "memory_bytes", "disk_bytes"}
    assert data["steps"] == 20
    assert data["training_tokens"] > 0
    assert not home.exists()
    assert main(["run", str(recipe), *TINY, "--dry-run", "--home", str(home)]) == 0
    out = capsys.readouterr().out
    for word in ("parameters", "steps", "time", "memory", "disk"):
        assert word in out


@pytest.mark.requirement("R011")
def test_env_says_what_the_machine_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["versions"]["torch"]
    assert data["cores"] >= 1
    assert 0 < data["memory_available_bytes"] <= data["memory_bytes"]
    assert data["parameters_that_fit"] > 1_000_000
    assert main(["env"]) == 0
    assert "You can train up to ~" in capsys.readouterr().out


# Streams, signals, bugs


def test_quiet_says_nothing_on_stderr(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "ok.txt", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "split" in out


def test_debug_shows_the_traceback_and_nothing_else_does(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "nowhere.txt", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_one_line_and_asks_for_debug(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.story.summary", lambda *_: 1 / 0)
    assert main(["show", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("chattune: a bug in chattune: ZeroDivisionError: division by zero. Run it again with --debug")
    assert err.count("\n") == 1
    assert main(["show", "x", "--debug"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "ok.txt", "--home", "ok.txt"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("chattune: ok.txt")
    assert "bug" not in last


@pytest.mark.security
@pytest.mark.requirement("I23")
def test_a_hostile_name_never_reaches_the_terminal_raw(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "\x1b]52;c;aGk=\x07\x1b[2J\nx"]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\x07" not in err
    assert err.count("\n") == 1


@pytest.mark.security
@pytest.mark.requirement("I24")
def test_names_with_shell_words_run_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("$(touch X)", ";touch X", "`touch X`", "|touch X"):
        assert main(["collect", "ok.txt", "--name", name]) == 2
        main(["collect", name])
        main(["show", name])
    assert not (place / "X").exists()


@pytest.mark.requirement("I33")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stage_with_its_exit_code(place: Path, number: int, code: int) -> None:
    # A sleep stands in for a long piece of work; training has its own campaign of signals.
    script = (
        "import sys, time; from chattune.cli import main, looking\n"
        "def summary(*_):\n"
        "    try:\n"
        "        print('here', flush=True), time.sleep(60)\n"
        "    except Exception:\n"  # a library's net, which must not catch a signal
        "        print('swallowed')\n"
        "looking.story.summary = summary\n"
        "sys.exit(main(['show', 'x']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*ENTRY, "explain", "muon"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0
