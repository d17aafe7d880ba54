"""Documentation that cannot rot: generated pages are fresh, every code block runs, both languages say the same commands."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from material import TINY, write_raw_logs

from chattune.cli import COMMANDS
from chattune.core.config import override, parse
from chattune.core.part import ROOT, iterate_parts
from chattune.story import Recipe, summary

PROJECT = ROOT.parent
PAGES = ["README.md", "docs/guide.md"]  # the blocks of README.zh.md are the same, another test holds that
WRITTEN = [*PAGES, "README.zh.md", "CONTRIBUTING.md", "RESULTS.md", "docs/architecture.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s*#.*")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCE.findall((PROJECT / page).read_text("utf-8"))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", PROJECT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh(generator: ModuleType) -> None:
    changed, gone = generator.stale()
    assert not changed and not gone, f"run `make docs`: {[path.name for path in [*changed, *gone]][:9]}"


def test_every_part_has_its_page() -> None:
    for kind, name in iterate_parts():
        assert (PROJECT / "docs" / "parts" / kind.name / f"{name}.md").exists()


def test_requirements_named_by_tests_exist(generator: ModuleType) -> None:
    other = re.compile(r"E1b|E1c|E2b|I(0[1-9]|[12]\d|3[0-5])|[CDSPU]\d{1,2}b?|must-\d+")  # must-N: what an issue demands to be shown
    for path in sorted((PROJECT / "tests").rglob("test_*.py")):
        for requirement, test in generator.marks(path):
            assert requirement in generator.REQUIREMENTS or other.fullmatch(requirement), f"{path.name}::{test}: {requirement}"


def test_coverage_sees_marks_wherever_they_stand(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    file = tmp_path / "tests" / "test_x.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.requirement('R001', 'E2')\ndef test_a(): pass\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.requirement('R003'))])\ndef test_b(x): pass\n"
        "class TestC:\n    @pytest.mark.requirement('R004')\n    def test_d(self): pass\n"
    )
    assert set(generator.marks(file)) == {("R001", "test_a"), ("E2", "test_a"), ("R003", "test_b"), ("R004", "test_d")}
    page = generator.coverage(tmp_path / "tests")
    assert "4 of 251 rows" in page
    assert "`tests/test_x.py::test_d`" in page
    assert "R002" in page.split("Without proof")[1]


def test_both_languages_have_the_same_blocks_sections_and_links() -> None:
    def stripped(page: str) -> list[tuple[str, str]]:
        return [(language, COMMENT.sub("", text)) for language, text in blocks(page) if language != "text"]

    english, chinese = ((PROJECT / page).read_text("utf-8") for page in ("README.md", "README.zh.md"))
    assert stripped("README.md") == stripped("README.zh.md")
    assert english.count("\n## ") == chinese.count("\n## ")
    links = re.compile(r"\]\(([^)]+)\)")
    assert [x for x in links.findall(english) if "README" not in x] == [x for x in links.findall(chinese) if "README" not in x]


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere_and_commands_exist(page: str) -> None:
    path = PROJECT / page
    text = path.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (path.parent / link).exists(), link
    commands = re.findall(r"^chattune ([a-z-]+)", "\n".join(code for _, code in blocks(page)), re.MULTILINE)
    for command in [*commands, *re.findall(r"`chattune ([a-z-]+)", text)]:
        assert command in {*COMMANDS, "completion"}, command


# Recipes get settings that end in seconds; everything else about commands and programs is as it is printed. The models keep their
# order of size: what a page makes of fewer layers, to propose tokens, has fewer than the model that it proposes to.
QUICK = [*TINY, "model.layers=3"]
DRAFTED = re.compile(r"^chattune chat (\S+) .*--draft (\S+)", re.MULTILINE)
WRAPPER = """#!{python}
import sys
from chattune.cli import main
words = sys.argv[1:]
sys.exit(main([*words, "collect.sources=[chatterbot-english]", *{quick!r}] if words[:1] == ["demo"] else words))
"""


@pytest.mark.long
@pytest.mark.requirement("U8")
@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_runs_as_printed(page: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "logs").mkdir()
    write_raw_logs(tmp_path / "logs" / "window.txt")
    script = tmp_path / "bin" / "chattune"
    script.write_text(WRAPPER.format(python=sys.executable, quick=QUICK))
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for text in (text for language, text in blocks(page) if language == "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)
        assert name, "a YAML block begins with its file's name"
        recipe = parse(text)
        Recipe.read({**recipe, "collect": {"sources": [str(tmp_path / "logs")]}})
        (tmp_path / name[1]).write_text(yaml.safe_dump(override(recipe, QUICK)), "utf-8")
    ran = 0
    for language, text in blocks(page):
        assert language in ("bash", "python", "yaml", "text"), f"{page} has a block of {language}, which nothing runs"
        if language not in ("bash", "python"):
            continue
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 3
    drafted = DRAFTED.findall("\n".join(text for _, text in blocks(page)))
    assert drafted
    for model, draft in drafted:
        assert summary(draft, tmp_path / "runs")["parameters"] < summary(model, tmp_path / "runs")["parameters"]


def test_the_ways_in_are_the_documented_ones() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for target in ("setup", "demo", "test", "check", "bench", "docs"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
    assert "Apache License" in (PROJECT / "LICENSE").read_text()
    assert "torch==2.13.0\n" in (PROJECT / "constraints.txt").read_text()
