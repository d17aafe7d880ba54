"""`Checkpoint`: a trained model on disk, as a Hugging Face directory that transformers loads unchanged; weights are safetensors only.

What chattune alone needs to know (the family's settings) stands in ``config.json`` under ``chattune``. Reading runs no code
from the directory, and takes nothing on trust: names, shapes, numbers and sizes are checked before and after the weights are read.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, DivergenceError
from chattune.core.part import choose, kind
from chattune.models.families import Family
from chattune.tokens.control import GENERATION, TOKENIZER_FILES
from chattune.tokens.token_set import Pretrained

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FRONT_MATTER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- chattune\n- conversational\n---\n\n"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib")
_LARGEST_VOCABULARY = 1 << 24


class Checkpoint(Pretrained):
    """A train or import run: ``model.safetensors``, ``config.json``, ``generation_config.json``, tokenizer, template, model card."""

    stage: ClassVar[str] = "train"
    also: ClassVar[tuple[str, ...]] = ("import",)

    def model(self) -> LanguageModel:
        """The model on the CPU in float32, ready to evaluate."""
        return load_model(self.path)


def save_model(model: LanguageModel, tokenizer_from: Path, out: Path, card: str) -> None:
    """Write `model` to the directory `out` with the tokenizer files of `tokenizer_from`; `card` is the model card in Markdown.

    Each file is replaced as a whole, the weights first. Raises `DivergenceError` before anything is written when a weight
    is not finite.
    """
    from chattune.tokens.tokenizer import Tokenizer

    tensors, config = model.exported()
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DivergenceError(
                "holds numbers that are not finite.", path=name, rule="finite weights",
                hint="Nothing was written; train with a lower rate.",
            )
    generation = Tokenizer.load(tokenizer_from).generation()
    ids = {key: value for key, value in generation.items() if key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = {"schema": 1, "family": model.family.dump(), "vocabulary": model.vocabulary}
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(tensors, out / WEIGHTS)
    files.write_json(out / CONFIG, {**config, **ids, "chattune": own})
    files.write_json(out / GENERATION, generation)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).resolve() != (out / name).resolve():
            files.write_atomically(out / name, (tokenizer_from / name).read_bytes())
    files.write_atomically(out / CARD, card if card.startswith("---\n") else FRONT_MATTER + card.rstrip() + "\n")


def load_model(path: Path) -> LanguageModel:
    """The model in a directory that `save_model` wrote, or in one of a plain Llama or Qwen3 model; float32, on the CPU.

    Raises `ArtifactError` for what cannot be read and `CorruptError` for what contradicts itself: tensors that are missing,
    too many, of another shape or not finite, each by name.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    family, vocabulary = _described(path / CONFIG)
    if not (path / WEIGHTS).is_file():
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED)
        raise ArtifactError(
            f"is missing{f' ({pickled[0]} is a pickle, which can run code and is never read)' if pickled else ''}.",
            path=str(path / WEIGHTS), rule="weights as one safetensors file",
            hint="Convert the weights to safetensors." if pickled else None,
        )
    try:
        with safe_open(path / WEIGHTS, framework="pt", device="cpu") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            _refuse_other_size(family, vocabulary, sum(math.prod(shape) for shape in shapes.values()), path)
            model = family.build(vocabulary, seed=0)
            _refuse_other_names({name: tuple(tensor.shape) for name, tensor in model.exported()[0].items()}, shapes, path / WEIGHTS)
            tensors = {name: _numbers(file.get_tensor(name), name, path / WEIGHTS) for name in shapes}
    except SafetensorError as error:
        raise CorruptError(
            f"is not a safetensors file: {error}.", path=str(path / WEIGHTS), rule="valid safetensors",
            hint="Copy it again, or train again.",
        ) from None
    model.load_exported(tensors)
    return model.eval()


def _described(path: Path) -> tuple[Family, int]:
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise CorruptError("holds no settings.", path=str(path), rule="a mapping")
    own = config.get("chattune")
    vocabulary = config.get("vocab_size", own.get("vocabulary") if isinstance(own, dict) else None)
    if not isinstance(vocabulary, int) or not 0 < vocabulary <= _LARGEST_VOCABULARY:
        raise CorruptError(f"vocab_size is {vocabulary!r}.", path=str(path), value=vocabulary, rule=f"from 1 to {_LARGEST_VOCABULARY}")
    try:
        if own is None:
            from chattune.models.architectures import family_of

            return family_of(config, str(path))[0], vocabulary
        described = own.get("family")
        _refuse_unknown_code(described, path)
        return choose(Family, described), vocabulary
    except (ValidationError, PydanticCustomError, AttributeError) as error:
        first = str(error).strip().splitlines()
        raise CorruptError(f"describes no model: {' '.join(first)[:300]}", path=str(path), rule="the settings of a family") from None


def _refuse_unknown_code(described: Any, path: Path) -> None:
    """A directory may name a family of chattune; one from elsewhere only if the user's own program has imported it."""
    name = described.get("name") if isinstance(described, dict) else None
    if not isinstance(name, str) or (name not in kind("families").names() and name.rpartition(".")[0] not in sys.modules):
        raise ArtifactError(
            f"names the family {name!r}, which is not part of chattune.", path=str(path), value=name,
            rule=f"one of {', '.join(kind('families').names())}", hint="Import the module that defines it first, if you trust it.",
        )


def _refuse_other_size(family: Family, vocabulary: int, found: int, path: Path) -> None:
    """Before memory is taken: a small file whose config.json describes a huge model (or the reverse) is not what it says."""
    described = family.parameters(vocabulary)
    if not found / 2 <= described <= found * 2:
        raise CorruptError(
            f"holds {found} numbers, but config.json describes a model of {described}.", path=str(path / WEIGHTS), value=found,
            rule="weights of the model that config.json describes", hint="The two files belong to different models.",
        )


def _refuse_other_names(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for names, trouble in ((missing, "lacks"), (extra, "has the unknown tensor")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CorruptError(f"{trouble} {names[0]}{more}.", path=str(path), value=names[0], rule="the tensors of config.json")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CorruptError(
                f"{name} is {_times(found[name])}, not {_times(shape)}.", path=str(path), value=name, rule="the shapes of config.json"
            )


def _numbers(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise CorruptError(f"{name} holds {tensor.dtype}.", path=str(path), value=name, rule="floating-point numbers")
    if not bool(tensor.isfinite().all()):
        raise CorruptError(f"{name} holds numbers that are not finite.", path=str(path), value=name, rule="finite weights")
    return tensor.float()


def _write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in tensors.items()}
    files.require_space(path, sum(4 * tensor.numel() for tensor in plain.values()))
    temporary = path.with_name(f".{path.name}.new")
    try:
        with files.telling_space(path):
            save_file(plain, temporary, metadata={"format": "pt"})
            files.sync(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            files.sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
