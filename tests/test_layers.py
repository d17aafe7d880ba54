"""The shape of the package: imports point left, and nothing in it can run code from data."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chattune.core.part import ROOT
from chattune.core.stage import IMPORT_ORDER

FILES = sorted(ROOT.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "imp", "telnetlib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
PROCESSES = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_shell"}
# A home, a mounted project, a scratch folder: places that exist on one machine only. /proc and /sys are Linux, not a machine.
MACHINE_PATH = re.compile(r"""(?<![\w.:/])/(?:home|work|root|Users|mnt|data|tmp|opt|srv)/[\w.-]+""")


def imported(tree: ast.AST, package: str = "") -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also inside functions; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def wrong_imports(text: str, package: str) -> list[tuple[int, str]]:
    """Imports of `package` (``chattune.tokens``) that point to the right in the order."""
    mine = package.split(".")[1] if "." in package else None
    wrong = []
    for line, module in imported(ast.parse(text), package):
        parts = module.split(".")
        if parts[0] != "chattune" or len(parts) < 2 or parts[1] not in IMPORT_ORDER or mine not in IMPORT_ORDER:
            continue
        if IMPORT_ORDER.index(parts[1]) > IMPORT_ORDER.index(mine):
            wrong.append((line, module))
    return sorted(set(wrong))


def dangers(text: str) -> list[tuple[int, str]]:
    """Calls and imports that could run code from data."""
    found = []
    tree = ast.parse(text)
    for line, module in imported(tree):
        if module.split(".")[0] in FORBIDDEN_MODULES:
            found.append((line, module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
                found.append((node.lineno, called.id))
            refused = {"allow_pickle", "trust_remote_code"} | ({"shell"} if ast.unparse(called).split(".")[-1] in PROCESSES else set())
            for keyword in node.keywords:
                if keyword.arg in refused and getattr(keyword.value, "value", True) is not False:
                    found.append((node.lineno, str(keyword.arg)))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_ATTRIBUTES:
            found.append((node.lineno, ast.unparse(node)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_left(path: Path) -> None:
    package = ".".join(path.relative_to(ROOT.parent).parent.parts)
    if package == "chattune":
        package = f"chattune.{path.stem}"
    wrong = wrong_imports(path.read_text("utf-8"), package)
    assert not wrong, "\n".join(f"{path}:{line} imports {module}, which stands to its right" for line, module in wrong)


@pytest.mark.security
@pytest.mark.requirement("I01", "I34")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_in_the_package_runs_code_from_data(path: Path) -> None:
    assert not dangers(path.read_text("utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_owns_and_names_no_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    reason = ast.get_docstring(ast.parse(text))
    assert reason
    assert len(reason.split("\n\n")[0].splitlines()) <= 5
    assert not MACHINE_PATH.search(text)


@pytest.mark.security
@pytest.mark.requirement("I01")
@pytest.mark.parametrize(
    "faulty",
    [
        "import pickle", "from joblib import load", "def f():\n    import dill", "torch.load(p, weights_only=True)", "yaml.load(t, L)",
        "eval(x)", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)", "subprocess.run(c, shell=flag)", "os.system(c)",
    ],
)  # fmt: skip
def test_the_search_sees_what_it_looks_for(faulty: str) -> None:
    assert dangers(faulty)


def test_the_layer_check_sees_a_wrong_import() -> None:
    inner, relative = "def f():\n    from chattune.train import loop", "from ...train.stage import x"
    assert wrong_imports(inner, "chattune.tokens") == [(2, "chattune.train"), (2, "chattune.train.loop")]
    assert wrong_imports(relative, "chattune.tokens.batchers") == [(1, "chattune.train.stage"), (1, "chattune.train.stage.x")]
    assert not wrong_imports("from chattune.core import files\nimport torch", "chattune.tokens")


def test_every_package_has_its_place_in_the_order() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages | {path.stem for path in ROOT.glob("[a-z]*.py")} <= set(IMPORT_ORDER)
