"""`Checkpoint`: a trained model on disk, as a Hugging Face directory that transformers loads unchanged; weights are safetensors only.

What chattune alone needs to know (the family's settings) stands in ``config.json`` under ``chattune``. Reading runs no code
from the directory, and takes nothing on trust: names, shapes, numbers and sizes are checked before and after the weights are read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from chattune.core import files
from chattune.core.errors import ArtifactError, CorruptError, DivergenceError
from chattune.core.part import choose, kind
from chattune.models.adapters import Adapter
from chattune.models.families import Family
from chattune.models.stored import HEAD, WEIGHTS, Description, Stored, refuse, spelling, write
from chattune.tokens.control import GENERATION, TOKENIZER_FILES
from chattune.tokens.token_set import Pretrained

if TYPE_CHECKING:
    from torch import Tensor

    from chattune.models.language_model import LanguageModel

CONFIG, CARD = "config.json", "README.md"
FRONT_MATTER = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- chattune\n- conversational\n---\n\n"
_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
_LARGEST_VOCABULARY = 1 << 24


class Checkpoint(Pretrained):
    """A train or import run: ``model.safetensors``, ``config.json``, ``generation_config.json``, tokenizer, template, model card."""

    stage: ClassVar[str] = "train"
    also: ClassVar[tuple[str, ...]] = ("import",)

    def model(self) -> LanguageModel:
        """The model on the CPU in float32, ready to evaluate; with its adapter, where it has one."""
        return load_model(self.path)

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that stands beside the weights because it could not be merged into them."""
        return _adapter(self.path / CONFIG)


def save_model(
    model: LanguageModel, tokenizer_from: Path, out: Path, card: str, dtype: str = "float32", adapter: Adapter | None = None
) -> None:
    """Write `model` to the directory `out` with the tokenizer files of `tokenizer_from`; `card` is the model card in Markdown.

    `adapter`: what `load_model` shall attach, from the folder that `adapters._files` wrote; `model` is then without it.

    `dtype` is that of the numbers on disk; another than float32 rounds them unless they came from it. Each file is replaced as a
    whole, the weights first. Raises `DivergenceError` before anything is written when a weight is not finite.
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
    own |= {"adapter": adapter.dump()} if adapter else {}
    out.mkdir(parents=True, exist_ok=True)
    write(tensors, out / WEIGHTS, dtype)
    files.write_json(out / CONFIG, {**config, **ids, "dtype": dtype, "chattune": own})
    files.write_json(out / GENERATION, generation)
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).resolve() != (out / name).resolve():
            files.write_atomically(out / name, (tokenizer_from / name).read_bytes())
    files.write_atomically(out / CARD, card if card.startswith("---\n") else FRONT_MATTER + card.rstrip() + "\n")


def load_model(path: Path) -> LanguageModel:
    """The model in a directory that `save_model` wrote, or in one of another library that a family covers; float32, on the CPU.

    Raises `ArtifactError` for what cannot be read and `CorruptError` for what contradicts itself: tensors that are missing,
    too many, of another shape or not finite, all by name.
    """
    model = read_directory(path)[0]
    if (adapter := _adapter(Path(path) / CONFIG)) is not None:
        from chattune.models.adapters._files import FOLDER, read_adapter

        read_adapter(adapter, model, Path(path) / FOLDER)
    return model


def read_directory(path: Path) -> tuple[LanguageModel, Description]:
    """The weights as `load_model` reads them, without an adapter, and what was found: their types, and what was not followed."""
    path = Path(path)
    family, vocabulary, kind_of_model, ignored, notes = _described(path / CONFIG)
    with Stored(path) as stored:
        _refuse_other_size(family, vocabulary, stored.numbers, stored.path)
        if family.name == "hf" and not files.read_json(path / CONFIG).get("chattune"):
            read = _read_by_library(path, stored, family, vocabulary)
            return read, Description("Hugging Face directory", kind_of_model, stored.counts, tuple(ignored), notes)
        model = family.empty(vocabulary)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.exported()[0].items()}
        spelt, spare = spelling(shapes, stored)
        stored.refuse_other({spelt[name]: shape for name, shape in shapes.items()}, spare)
        model.load_exported(_Spelt(stored, spelt))
        _refuse_other_head(stored, spare, spelt)
        stored.refuse_if_not_finite()
        return model.eval(), Description("Hugging Face directory", kind_of_model, stored.counts, (*ignored, *spare), notes)


def _read_by_library(path: Path, stored: Stored, family: Family, vocabulary: int) -> LanguageModel:
    """A model whose stored names only transformers knows: it renames as it reads. Of the directory it is given weights alone."""
    import torch

    from chattune.models.families._hf import HFModel

    if (path / "adapter_config.json").exists():
        raise ArtifactError(
            "holds an adapter beside a model.", path=str(path / "adapter_config.json"), rule="a whole model",
            hint="Merge the adapter into the model first.",
        )
    stored.refuse_unreadable()
    for name in stored:
        stored[name]
    stored.refuse_if_not_finite()
    model = family.empty(vocabulary)
    assert isinstance(model, HFModel)
    read, told = type(model.network).from_pretrained(
        path, config=model.network.config, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32,
        output_loading_info=True,
    )  # fmt: skip
    wrong = [f"lacks {name}" for name in sorted(told["missing_keys"])]
    wrong += [f"has the unknown tensor {name}" for name in sorted(told["unexpected_keys"])]
    refuse(stored.path, [*wrong, *(f"{each[0]} has another shape" for each in told["mismatched_keys"])], "the tensors of config.json")
    model.network.load_state_dict(read.state_dict())
    return model.eval()


class _Spelt(Mapping[str, "Tensor"]):
    """The stored tensors under the names that a model expects."""

    def __init__(self, stored: Stored, names: Mapping[str, str]) -> None:
        self.stored, self.names = stored, names

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _refuse_other_head(stored: Stored, spare: list[str], spelt: Mapping[str, str]) -> None:
    """A head that is stored although config.json ties it to the embeddings must be equal to them."""
    tables = [spelt[name] for name in ("model.embed_tokens.weight", "transformer.wte.weight") if name in spelt]
    if HEAD in spare and not (tables and stored.shapes[HEAD] == stored.shapes[tables[0]] and stored[HEAD].equal(stored[tables[0]])):
        refuse(stored.path, [f"{HEAD} differs from {tables or 'the embeddings'}, though both are tied"], "one table, or two")


def _described(path: Path) -> tuple[Family, int, str, list[str], tuple[str, ...]]:
    """Family, vocabulary, the architecture's name, the entries of ``config.json`` that are not followed, and notes."""
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

            kind_of_model = str(config.get("model_type"))
            try:
                covered, ignored = family_of(config, str(path))
            except CorruptError:
                raise
            except ArtifactError as uncovered:
                other, ignored = _through_transformers(config, uncovered)
                return other, vocabulary, kind_of_model, ignored, (f"computed by transformers, since it {uncovered.message}",)
            return covered, vocabulary, kind_of_model, ignored, ()
        described = own.get("family")
        _refuse_unknown_code(described, path)
        beside = ["chattune.adapter"] if own.get("adapter") else []
        return choose(Family, described), vocabulary, str(described["name"]), beside, ()
    except (ValidationError, PydanticCustomError, AttributeError) as error:
        first = str(error).strip().splitlines()
        raise CorruptError(f"describes no model: {' '.join(first)[:300]}", path=str(path), rule="the settings of a family") from None


def described(path: Path) -> tuple[Family, int]:
    """The family and the vocabulary of the model in a directory, from its ``config.json`` alone."""
    return _described(Path(path) / CONFIG)[:2]


def _through_transformers(config: Mapping[str, Any], uncovered: ArtifactError) -> tuple[Family, list[str]]:
    """A model that transformers knows and our own families do not; `uncovered`, which says why, where it does not know it either.

    What names code in the configuration is left out, and told: the network is the installed library's, or none.
    """
    from chattune.models.families.hf import HF

    code = [key for key in config if key in _CODE or "attn_implementation" in key or "experts_implementation" in key]
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise uncovered
        return HF(config={key: value for key, value in config.items() if key not in code}).resolved(), code
    except ImportError:
        raise uncovered from None
    except ValidationError as error:
        raise ArtifactError(
            f"{uncovered.message.rstrip('.')}; and for transformers, {error.errors()[0]['msg']}.", path=uncovered.path,
            value=uncovered.value, rule=uncovered.rule, hint=uncovered.hint,
        ) from None


def _adapter(path: Path) -> Adapter | None:
    """The adapter that ``config.json`` says stands beside the weights."""
    own = files.read_json(path).get("chattune")
    described = own.get("adapter") if isinstance(own, dict) else None
    if described is None:
        return None
    if not isinstance(described, dict) or described.get("name") not in kind("adapters").names():
        raise ArtifactError(
            "names an adapter that is not part of chattune.", path=str(path), value=str(described)[:100],
            rule=f"one of {', '.join(kind('adapters').names())}", hint="Upgrade chattune, or copy the directory again.",
        )
    try:
        adapter: Adapter = choose(Adapter, described)
    except (ValidationError, PydanticCustomError) as error:
        raise CorruptError(f"describes no adapter: {error}", path=str(path), rule="the settings of an adapter") from None
    return adapter


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
            f"holds {found} numbers, but config.json describes a model of {described}.", path=str(path), value=found,
            rule="weights of the model that config.json describes", hint="The two files belong to different models.",
        )
