"""Files of strangers: pickles, code, hostile templates and weights that are not what they say run nothing, and are told in one line.

Incidents I01 to I06 of the reliability specification, each with a positive control that shows the case fails where a file is trusted.
The smoke version runs always; ``FULL=1`` tries more mutations.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import reading

from chattune.cli import main
from chattune.core import files
from chattune.core.errors import ArtifactError, ChattuneError, CorruptError
from chattune.core.gguf import read_gguf, write_gguf_file
from chattune.core.part import ROOT
from chattune.core.progress import talk

FULL = os.environ.get("FULL") == "1"
MARKER = "marker-of-a-pickle"
ROWS = 700


class Poison:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def archive(poison: bytes, name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr(name, poison)
        packed.writestr(f"{name.partition('/')[0]}/version", "3\n")
    return content.getvalue()


def array(marker: Path) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Poison(marker)], dtype=object), allow_pickle=True)
    return content.getvalue()


def poisons(marker: Path) -> dict[str, bytes]:
    """Pickles in the forms that libraries give them."""
    return {
        "text": pickle.dumps(Poison(marker), protocol=0), "binary": pickle.dumps(Poison(marker), protocol=4),
        "torch": archive(pickle.dumps(Poison(marker), protocol=2), "archive/data.pkl"), "npy": array(marker),
        "npz": archive(array(marker), "ids.npy"),
    }  # fmt: skip


def opened_by_those_who_trust(form: str, content: bytes, folder: Path) -> None:
    """What peers do with such a file."""
    import torch

    path = folder / "trusted"
    path.write_bytes(content)
    if form == "torch":
        torch.load(path, weights_only=False)
    elif form in ("npy", "npz"):
        found = np.load(path, allow_pickle=True)
        _ = found if form == "npy" else found["ids"]
    else:
        pickle.loads(content)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pickles of a test leave their mark; the switch that makes torch unpickle anything is on."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / MARKER


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a tiny Llama, and the same as ``model.gguf`` beside it. Not to be written to."""
    from chattune.models.checkpoint import save_model
    from chattune.models.families.gpt import GPT
    from chattune.models.gguf import write_gguf
    from chattune.tokens.foreign import ForeignTokenizer

    home = tmp_path_factory.mktemp("source")
    folder = home / "there"
    ForeignTokenizer.of(foreign.write(home / "tokens", "gpt2")).template().save(folder_of(folder))
    model = GPT(layers=1, width=16, heads=2, context=32, qk_norm=False).build(ROWS, seed=0)
    save_model(model, folder, folder, "# Tiny\n")
    write_gguf(model, folder, home / "model.gguf", "F32")
    config = files.read_json(folder / "config.json")
    del config["chattune"]
    files.write_json(folder / "config.json", config)
    return folder


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and what was said on stderr; never a bug, never a traceback."""
    capsys.readouterr()
    code = main([*words])
    said = capsys.readouterr().err
    assert "a bug in chattune" not in said, said
    assert "Traceback" not in said, said
    return code, said


# I01, I02: pickles

BESIDE = [
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt",
    "adapter_model.bin", "adapter_model.pt", "consolidated.00.pth", "model.ckpt", "model.pkl", "state.npy", "state.npz", "x.joblib",
    "value_head.bin", "vhead.bin", "tf_model.h5", "flax_model.msgpack", "global_step1.pt", "latest", "data.pkl",
]  # fmt: skip
READ = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "model.safetensors", "model.safetensors.index.json",
]  # fmt: skip


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
@pytest.mark.parametrize("form", ["text", "binary", "torch", "npy", "npz"])
def test_the_poison_works_where_files_are_trusted(form: str, marker: Path, tmp_path: Path) -> None:
    """The positive control of all that follow."""
    content = poisons(marker)[form]
    assert not marker.exists()
    opened_by_those_who_trust(form, content, tmp_path)
    assert marker.exists()


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
def test_pickles_beside_a_model_are_not_opened(
    source: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(source, tmp_path / "there")
    kinds = [*poisons(marker).values()]
    for number, name in enumerate(BESIDE):
        (folder / name).write_bytes(kinds[number % len(kinds)])
    assert asked(capsys, "import", str(folder))[0] == 0
    assert not marker.exists()
    made = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("import-"))
    assert not {path.name for path in made.iterdir()} & set(BESIDE)


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
@pytest.mark.parametrize("form", ["text", "torch"])
def test_pickles_in_place_of_a_models_weights_are_refused_and_safetensors_named(
    form: str, source: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = poisons(marker)[form]
    folder = copied(source, tmp_path / "there")
    (folder / "model.safetensors").write_bytes(poison)
    assert asked(capsys, "import", str(folder))[0] == 1
    (folder / "model.safetensors").unlink()
    for name in BESIDE:
        (folder / name).write_bytes(poison)
    code, said = asked(capsys, "import", str(folder))
    assert (code, "safetensors" in said, "pickle" in said) == (1, True, True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}))
    code, said = asked(capsys, "import", str(folder))
    assert (code, "safetensors" in said) == (1, True)
    for name in ("pytorch_model.bin", "model.ckpt", "state.npz"):
        assert asked(capsys, "import", str(folder / name))[0] == 1
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    code, said = asked(capsys, "import", str(folder))
    assert (code, "safetensors" in said, "adapter" in said) == (1, True, True)
    assert not marker.exists()


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
@pytest.mark.parametrize("name", READ)
def test_a_pickle_under_a_name_that_is_read_runs_nothing(
    name: str, source: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, poison in enumerate((poisons(marker)["text"], poisons(marker)["binary"])):
        folder = copied(source, tmp_path / f"there{number}")
        if name == "chat_template.json":
            (folder / "chat_template.jinja").unlink()
        if name == "model.safetensors.index.json":
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(poison)
        assert asked(capsys, "import", str(folder))[0] == 1, number
    assert not marker.exists()


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
def test_pickles_in_an_adapters_folder_run_nothing(source: Path, marker: Path, tmp_path: Path) -> None:
    from chattune.core.part import choose
    from chattune.models.adapters import Adapter
    from chattune.models.adapters._files import read_adapter
    from chattune.models.foreign import read_foreign

    model, adapter, folder = read_foreign(source)[0], choose(Adapter, "lora"), tmp_path / "adapter"
    folder.mkdir()
    for form, poison in poisons(marker).items():
        (folder / "adapter_model.bin").write_bytes(poison)
        with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: is missing"):
            read_adapter(adapter, model, folder)
        (folder / "adapter_model.safetensors").write_bytes(poison)
        with pytest.raises(CorruptError, match="is not a safetensors file"):
            read_adapter(adapter, model, folder)
        (folder / "adapter_model.safetensors").unlink()
        assert not marker.exists(), form


@pytest.mark.security
@pytest.mark.requirement("I01", "I02")
def test_pickles_given_as_conversations_are_told_as_what_they_are_not(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "data")
    for name, poison in zip(["a.pkl", "b.npy", "c.npz", "d.pt", "e.joblib"], poisons(marker).values(), strict=True):
        (folder / name).write_bytes(poison)
    code, said = asked(capsys, "collect", str(folder))
    assert (code, "no file that could be conversations" in said) == (1, True)
    for ending in (".jsonl", ".json", ".csv", ".txt", ".yml", ".pkl"):
        for form, poison in poisons(marker).items():
            path = tmp_path / f"{form}{ending}"
            path.write_bytes(poison)
            assert asked(capsys, "collect", str(path))[0] == 1, path.name
    assert not marker.exists()


@pytest.mark.security
@pytest.mark.requirement("I01")
def test_arrays_that_hold_pickles_are_refused_without_the_advice_to_unpickle(marker: Path, tmp_path: Path) -> None:
    from chattune.evaluate.loss import SplitLoss
    from chattune.tokens.token_set import mapped

    path = tmp_path / "ids.npy"
    good = io.BytesIO()
    np.savez(good, ids=np.arange(3))
    table = io.BytesIO()
    np.save(table, np.zeros((3, 3), dtype="<c8"))
    for content in (*poisons(marker).values(), b"", good.getvalue(), table.getvalue()):
        path.write_bytes(content)
        with pytest.raises(CorruptError) as caught:
            mapped(path)
        assert "allow_pickle" not in str(caught.value) and "pickle.load" not in str(caught.value)
        with pytest.raises(CorruptError, match="holds no losses"):
            SplitLoss.load(path)
    np.save(path, np.arange(3))
    assert mapped(path).tolist() == [0, 1, 2]
    assert not marker.exists()


@pytest.mark.security
@pytest.mark.requirement("I02")
def test_the_oldest_torch_allowed_is_one_whose_loading_is_mended() -> None:
    """CVE-2025-32434 was mended in 2.6, CVE-2026-24747 in 2.10. We load nothing with it all the same."""
    pyproject = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))
    wanted = next(line for line in pyproject["project"]["dependencies"] if line.startswith("torch>="))
    version = wanted.removeprefix("torch>=").partition(",")[0]
    assert tuple(map(int, version.split("."))) >= (2, 10)


# I03: the state of a training

FORGED: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("MANIFEST.json", lambda data: data.pop("files")), ("MANIFEST.json", lambda data: data.update(files=[])),
    ("MANIFEST.json", lambda data: data["files"].update({"trainer_state.json": 3})),
    ("MANIFEST.json", lambda data: data["files"].update({"../../x": {"size": 0, "sha256": ""}})),
    ("MANIFEST.json", lambda data: data["files"].update({"rng_state.pth": {"size": 0, "sha256": ""}})),
    ("MANIFEST.json", lambda data: data.pop("step")), ("MANIFEST.json", lambda data: data.update(schema="1")),
    ("trainer_state.json", lambda data: data.pop("state")), ("trainer_state.json", lambda data: data.pop("optimizer")),
]  # fmt: skip


@pytest.mark.security
@pytest.mark.requirement("I03")
@pytest.mark.parametrize("case", range(len(FORGED)))
def test_a_forged_state_of_a_training_is_an_error_or_a_fallback_that_is_said(
    case: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forged with digests that fit, so that no checksum stands in the way."""
    import torch

    from chattune.train import state as train_state

    name, forge = FORGED[case]
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    snapshots = train_state.Snapshots(tmp_path / "state")
    for step in (1, 2):
        snapshots.save(step, {"w": weight.detach()}, optimizer, {"step": step}, {})
    newest = tmp_path / "state" / "step-00000002"
    found, _ = train_state.newest(tmp_path / "state")
    assert found is not None and found.step == 2, "positive control: as it was written it is read"
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    del manifest["sha256"]
    data = manifest if name == "MANIFEST.json" else json.loads((newest / name).read_text())
    forge(data)
    if name != "MANIFEST.json":
        manifest["files"][name] = train_state._put(newest / name, json.dumps(data).encode())
    (newest / "MANIFEST.json").write_bytes(train_state._manifest(manifest))
    talk.cache_clear()
    found, damaged = train_state.newest(tmp_path / "state")
    assert found is not None
    assert found.step == 1, "the forged checkpoint was taken"
    assert damaged == [newest]
    assert "Using the checkpoint of step 1" in capsys.readouterr().err
    talk.cache_clear()
    shutil.rmtree(tmp_path / "state" / "step-00000001")
    with pytest.raises(CorruptError, match="none of its 1 checkpoints is whole"):
        train_state.newest(tmp_path / "state")


# I04: code


@pytest.mark.security
@pytest.mark.requirement("I04")
def test_code_in_a_directory_of_the_family_hf_is_listed_and_never_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    folder, marker = copied(source, tmp_path / "there"), tmp_path / MARKER
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    config = transformers.GPTNeoXConfig(
        vocab_size=ROWS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    for name in ("modeling_x", "configuration_x", "tokenization_x", "custom_generate/generate"):
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass X: pass\n", "utf-8")
    entries = {
        "auto_map": {"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "configuration_x.X"}, "trust_remote_code": True,
        "_attn_implementation_internal": "someone/kernel", "custom_pipelines": {"x": {"impl": "modeling_x.X"}},
    }  # fmt: skip
    files.write_json(folder / "config.json", {**files.read_json(folder / "config.json"), **entries})
    words = files.read_json(folder / "tokenizer_config.json")
    files.write_json(folder / "tokenizer_config.json", {**words, "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}})
    code, said = asked(capsys, "import", str(folder))
    assert code == 0, said
    made = next(path for path in (tmp_path / "runs").iterdir() if path.name.startswith("import-"))
    notes = " ".join(files.read_json(made / "manifest.json")["metrics"]["notes"])
    for key in (*entries, "tokenizer_config.json names code"):
        assert key in notes
    assert not [*made.rglob("*.py")]
    for name in ("config.json", "tokenizer_config.json"):
        assert "someone/kernel" not in (made / name).read_text() and "auto_map" not in (made / name).read_text()
    assert not marker.exists()
    subprocess.run([sys.executable, "modeling_x.py"], cwd=folder, check=True)
    assert marker.exists(), "positive control: the marker tells when such a file is run"


def test_of_several_templates_the_default_is_taken_and_the_others_are_told(source: Path, tmp_path: Path) -> None:
    from chattune.tokens._hugging_face import found_in

    folder = copied(source, tmp_path / "there")
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").unlink()
    words = files.read_json(folder / "tokenizer_config.json")
    several: list[Any] = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": template}, 3, {"name": []}]
    files.write_json(folder / "tokenizer_config.json", {**words, "chat_template": several})
    found = found_in(folder)
    assert found.template == template
    assert any("tool_use" in note for note in found.notes)
    files.write_json(folder / "tokenizer_config.json", {**words, "chat_template": several[:1]})
    assert found_in(folder).template is None


# I06: weights that are not what they say


@pytest.mark.campaign
@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_mutated_weight_files_are_refused_within_little_memory_and_write_nothing(kind: str, source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path / "there")
    shutil.copy(source.parent / "model.gguf", folder)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    words = [sys.executable, str(Path(reading.__file__)), kind, str(folder), str(2000 if FULL else 120)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600 if FULL else 120)
    assert done.returncode == 0, done.stderr[-3000:]
    went = json.loads(done.stdout)
    assert went["refused"] > went["cases"] / 2
    assert went["peak_kib"] < (reading.ROOM + (folder / reading.WEIGHTS[kind]).stat().st_size) // 1024
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize("fault", ["length", "shape", "name", "cut"])
def test_the_mutations_harm_a_reader_that_trusts(fault: str, source: Path, tmp_path: Path) -> None:
    """The positive control: too much memory, a file outside, half a model taken for a whole one."""
    whole = (source / "model.safetensors").read_bytes()
    header, data = reading.parts(whole)
    name = next(key for key in header if key != "__metadata__")
    path, out = tmp_path / "model.safetensors", folder_of(tmp_path / "in" / "out")
    if fault == "length":
        path.write_bytes((2**63).to_bytes(8, "little") + whole[8:])
    elif fault == "shape":
        path.write_bytes(reading.joined(json.dumps({**header, name: {**header[name], "shape": [2**40, 2**10]}}), data))
    elif fault == "name":
        path.write_bytes(reading.joined(json.dumps({"../../x": header[name]}), data))
    else:
        path.write_bytes(whole[: -len(data) // 2])
    if fault in ("length", "shape"):
        with pytest.raises((OverflowError, MemoryError)), reading.limited(reading.ROOM):
            reading.trusting(path, out)
    else:
        assert reading.trusting(path, out)
        assert (tmp_path / "x").exists() == (fault == "name")


@pytest.mark.security
@pytest.mark.requirement("I06")
def test_lists_of_a_gguf_file_cannot_take_many_times_its_size(tmp_path: Path) -> None:
    """A number of four bytes takes ten times as much once it is read: what a file may list is counted over all its lists."""
    numbers = [1.5] * (1 << 19)
    write_gguf_file(tmp_path / "two.gguf", {"a": numbers, "b": numbers}, [])
    assert len(read_gguf(tmp_path / "two.gguf").metadata["b"]) == 1 << 19
    write_gguf_file(tmp_path / "three.gguf", {"a": numbers, "b": numbers, "c": [1.5]}, [])
    with pytest.raises(CorruptError, match="claims 1 numbers in 'c'"):
        read_gguf(tmp_path / "three.gguf")


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json", "README.md"])
def test_links_that_lead_out_of_a_directory_are_refused_and_those_of_the_cache_are_followed(
    name: str, source: Path, tmp_path: Path
) -> None:
    from chattune.models.sources import located

    secret = tmp_path / "secret"
    shutil.copy(source / name, secret)
    folder = copied(source, tmp_path / "there")
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(ArtifactError, match="leads out of its folder"):
        located(str(folder))
    assert (folder / name).read_bytes() == secret.read_bytes(), "positive control: a reader that does not look follows it"
    cache = tmp_path / "models--x"
    snapshot = copied(source, cache / "snapshots" / "0a1b")
    folder_of(cache / "blobs")
    shutil.move(snapshot / name, cache / "blobs" / "digest")
    (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / "digest")
    assert located(str(snapshot)).path == snapshot


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize(
    "entry", [{"num_hidden_layers": 10**9}, {"n_layer": 10**6}, {"num_local_experts": 10**7}, {"text_config": {"num_experts": 10**7}}]
)
def test_a_configuration_of_more_layers_than_any_model_has_is_refused_before_they_are_built(entry: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from chattune.models.families.hf import HF

    with pytest.raises(ValidationError, match="more than 4096"):
        HF(config={"model_type": "gpt_neox", **entry})
    HF(config={"model_type": "gpt_neox", "num_hidden_layers": 96, "vocab_size": 10**6})


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda data: data.update(model_type=["llama"])), ("config.json", lambda data: data.update(rope_scaling=[1])),
        ("config.json", lambda data: data.update(rope_parameters=3)), ("config.json", lambda data: data.update(hidden_act={})),
        ("tokenizer.json", lambda data: data["model"].update(merges=None)),
        ("tokenizer.json", lambda data: data["model"].update(merges=[3])),
        ("tokenizer.json", lambda data: data["model"].update(merges=["x"])),
        ("tokenizer.json", lambda data: data["model"].update(unk_token=[])),
        ("tokenizer.json", lambda data: data.update(added_tokens=3)), ("tokenizer.json", lambda data: data.update(decoder=3)),
        ("tokenizer_config.json", lambda data: data.update(extra_special_tokens=3)),
        ("tokenizer_config.json", lambda data: data.update(chat_template={"a": []})),
        ("generation_config.json", lambda data: data.update(eos_token_id=[10**30])),
    ],
)  # fmt: skip
def test_entries_of_another_kind_than_expected_are_told_and_no_bug(
    name: str, change: Callable[[dict[str, Any]], object], source: Path, tmp_path: Path
) -> None:
    from chattune.models.foreign import read_foreign
    from chattune.tokens.foreign import ForeignTokenizer

    folder = copied(source, tmp_path / "there")
    data = files.read_json(folder / name)
    change(data)
    (folder / name).write_text(json.dumps(data), "utf-8")
    try:  # what nobody asks for may be anything; what is asked for is told
        read_foreign(folder)
        ForeignTokenizer.of(folder)
    except ChattuneError as error:
        told = error
    else:
        told = None
    assert told is None or told.path
    (folder / name).write_text("[" * 200_000, "utf-8")
    with pytest.raises(CorruptError):
        ForeignTokenizer.of(folder) if name.startswith(("tok", "gen")) else read_foreign(folder)


@pytest.mark.security
@pytest.mark.requirement("I06")
@pytest.mark.parametrize("value", [["llama"], 3, float("nan"), ""])
def test_a_gguf_file_that_names_its_architecture_by_something_else_than_a_word_is_refused(
    value: Any, source: Path, tmp_path: Path
) -> None:
    from chattune.models.foreign import read_foreign

    write_gguf_file(tmp_path / "x.gguf", {"general.architecture": value}, [])
    with pytest.raises(ArtifactError, match="architecture"):
        read_foreign(tmp_path / "x.gguf")


# The list of the issue, through the command line


def test_a_gguf_file_of_an_unknown_architecture_is_refused_by_name_with_what_would_fit(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = dict(read_gguf(source.parent / "model.gguf").metadata)
    write_gguf_file(tmp_path / "x.gguf", {**data, "general.architecture": "rwkv6"}, [])
    code, said = asked(capsys, "import", "x.gguf")
    assert code == 1
    assert "'rwkv6'" in said and "Hugging Face directory" in said


def test_a_tokenizer_larger_than_the_embeddings_is_refused_by_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied(source, tmp_path / "there")
    data = files.read_json(folder / "tokenizer.json")
    more = [{**data["added_tokens"][0], "id": ROWS + number, "content": f"<more{number}>"} for number in range(3)]
    known = len(data["model"]["vocab"])
    vocabulary = {**data["model"]["vocab"], **{f"filler{number}": number for number in range(known, ROWS)}}
    data["model"]["vocab"] = vocabulary
    data["added_tokens"] += more
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    code, said = asked(capsys, "import", str(folder))
    assert code == 1
    assert f"a tokenizer of {ROWS + 3} tokens, and embeddings for {ROWS}" in said and "do not belong together" in said


def test_batch_norm_where_a_micro_batch_has_one_token_is_refused_by_name_with_what_would_fit(
    raw_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from chattune.models.norms.batch_norm import BatchNorm

    monkeypatch.chdir(tmp_path)
    demo = str(ROOT.parent / "configs" / "demo.yaml")
    code, said = asked(capsys, "run", demo, f"collect.sources={raw_logs}", "model.norm=batch_norm", "--dry-run")
    assert code == 2
    assert "batch_norm" in said and "layer_norm" in said
    layer = BatchNorm().build(4).train()
    with pytest.raises(ChattuneError, match="cannot train on a micro-batch of one token") as caught:
        layer(torch.zeros(1, 4))
    assert "layer_norm" in str(caught.value)
    layer(torch.zeros(2, 4))
