"""Runs on disk: what names and references mean, and that none of them leads out of the home."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chattune.core import files
from chattune.core.artifact import MANIFEST, PLAN, Artifact, Home, check_name
from chattune.core.errors import ArtifactError, ChattuneError, CorruptError, UnknownName, UsageError


class _Thing(Artifact):
    stage = "thing"


def _run(home: Path, name: str, *, finished: bool = True, **changes: object) -> Path:
    run = home / name
    run.mkdir(parents=True)
    files.write_json(run / PLAN, {"schema": 1, "stage": "thing", "config": {}, "inputs": {}, "sources": {}})
    (run / "payload").write_bytes(b"payload")
    outputs = {"payload": {"size": 7, "sha256": files.digest_of(run / "payload")}}
    if finished:
        files.write_json(run / MANIFEST, {"schema": 1, "stage": "thing", "outputs": outputs, **changes})
    return run


def test_a_run_is_meant_by_path_name_directory_or_unique_digest_prefix(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first, second = _run(tmp_path, "thing-3f9c000000"), _run(tmp_path, "thing-3fa0000000")
    home.give_name("mine", first)
    for reference in (first, str(first), "mine", "thing-3f9c000000", "thing-3f9", "3f9"):
        assert home.find(reference) == first
    home.give_name("mine", second)
    assert home.find("mine") == second
    with pytest.raises(UnknownName, match=r"could mean 2 runs\. Choose one of: thing-3f9c000000, thing-3fa0000000\."):
        home.find("3f")
    with pytest.raises(UnknownName, match=r"no run is called 'mime' in .* Did you mean 'mine'\?"):
        home.find("mime")


def test_an_empty_home_says_how_to_make_a_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Make one with `chattune demo`"):
        Home(tmp_path / "none").find("x")


def test_a_name_whose_run_was_deleted_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.give_name("gone", tmp_path / "thing-0")
    with pytest.raises(ArtifactError, match="the run called 'gone' is gone"):
        home.find("gone")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"finished": False}, "is not finished. Continue it with `chattune resume thing-1`."),
        ({"stage": "other"}, "is a other run, not a thing run."),
        ({"schema": 99}, "was written by a newer chattune (schema 99). Upgrade chattune."),
    ],
)
def test_what_cannot_be_opened_says_what_it_is_and_what_to_do(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    run = _run(tmp_path, "thing-1", **changes)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError) as caught:
        _Thing.open(run)
    assert says in str(caught.value)


@pytest.mark.requirement("C6")
def test_verify_finds_every_flipped_byte_a_cut_and_a_missing_file(tmp_path: Path) -> None:
    thing = _Thing.open(_run(tmp_path, "thing-1"))
    thing.verify()
    payload = thing.path / "payload"
    for position in range(7):
        damaged = bytearray(b"payload")
        damaged[position] ^= 1
        payload.write_bytes(damaged)
        with pytest.raises(CorruptError, match="is not what was written"):
            thing.verify()
    payload.write_bytes(b"payloa")
    with pytest.raises(CorruptError):
        thing.verify()
    payload.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        thing.verify()


HOSTILE = [
    "", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:x", "%2e%2e", "a\x00b", "a\nb", "．．", "‥", "-rf", "--flag", ".hidden",
    "$(touch x)", "a;b", "x" * 101, "é", " a", "a ", "con\t", "~root",
]  # fmt: skip


@pytest.mark.security
@pytest.mark.requirement("I07", "I24")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_run_names_are_refused_and_make_no_file(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(UsageError, match="cannot name a run"):
        Home(home).give_name(name, home / "thing-1")
    assert os.listdir(home) == []
    assert os.listdir(tmp_path) == ["home"]


@pytest.mark.security
@pytest.mark.requirement("I07", "P2")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.sampled_from(string.ascii_letters + "./\\%:~ \0-_é․‥．\n"), max_size=8))
def test_a_name_that_is_taken_stays_in_the_folder_of_names(tmp_path: Path, name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    folder = (tmp_path / "names").resolve()
    assert (folder / name).resolve().parent == folder
    assert not name.startswith((".", "-"))


@pytest.mark.security
@pytest.mark.requirement("I07")
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=300) | st.sampled_from(HOSTILE) | st.just("x" * 5000))
def test_any_text_as_a_reference_gives_a_run_or_a_told_error(tmp_path: Path, text: str) -> None:
    home = tmp_path / "home"
    if not home.exists():
        _run(home, "thing-3f9c000000")
    try:
        found = Home(home).find(text)
    except ChattuneError:
        return
    assert (found / PLAN).exists()


@pytest.mark.security
@pytest.mark.requirement("I07")
def test_a_poisoned_name_file_cannot_lead_out_of_the_home(tmp_path: Path) -> None:
    outside = _run(tmp_path, "outside")
    (tmp_path / "home" / "names").mkdir(parents=True)
    (tmp_path / "home" / "names" / "evil").write_text("../outside")
    with pytest.raises(ArtifactError, match="is gone"):
        Home(tmp_path / "home").find("evil")
    assert Home(tmp_path / "home").find(outside) == outside  # a path that the user gives is the user's business
