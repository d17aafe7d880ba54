"""The stage `import`: a pretrained model from elsewhere becomes a checkpoint of ours, with its own tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune.core import files
from chattune.core.errors import ArtifactError, DataError
from chattune.core.part import Settings, setting
from chattune.core.progress import talk
from chattune.core.stage import keep_summary, stage
from chattune.models.checkpoint import Checkpoint
from chattune.models.sources import Source, digests, located

if TYPE_CHECKING:
    from chattune.models.language_model import LanguageModel
    from chattune.models.stored import Description
    from chattune.tokens.chat_template import ChatTemplate


class ImportConfig(Settings):
    """Which pretrained model to start from."""

    path: str | None = setting(
        None, "a Hugging Face directory, a GGUF file, or an installed Python package that ships one; none: start from fresh weights"
    )
    template: str | None = setting(
        None, "a Jinja file used as chat template; none: the model's own, or plain 'User: …' and 'Assistant: …' where it has none"
    )

    def idle(self) -> bool:
        """Whether there is nothing to import."""
        return self.path is None

    def fingerprint(self) -> dict[str, str]:
        """The bytes of everything that is read."""
        found = [] if self.path is None else located(self.path).files()
        if self.template is not None:
            if not Path(self.template).is_file():
                raise ArtifactError("is no file.", path=f"import.template: {self.template}", value=self.template, rule="a Jinja file")
            found.append(Path(self.template))
        return digests(found)


@stage
def import_(*, config: ImportConfig, out: Path) -> Checkpoint:
    """A checkpoint from a pretrained model: weights as they are, tokenizer, chat template, how its maker samples."""
    if config.path is None:
        raise DataError("names no model.", path="import.path", rule="a Hugging Face directory, a GGUF file or a Python package")
    from chattune.models.checkpoint import save_model
    from chattune.models.foreign import read_foreign

    source = located(config.path)
    with files.telling_damage(source.path, "a tokenizer and a chat template that are whole"):
        template = _template(source, config)
        template.save(out)
    model, found = read_foreign(source.path)
    _refuse_larger(template, model, source)
    notes = [*template.tokenizer.notes, *template.notes(), *_told(found)]
    if template.tokenizer.losses:
        notes.append(f"its tokenizer does not give back: {'; '.join(template.tokenizer.losses)}")
    license = source.license()
    summary = _summary(source, template, model, found, license, notes)
    save_model(model, out, out, _card(source, summary), found.dtype)
    keep_summary(out, summary)
    _say(summary)
    return Checkpoint(out)


def _template(source: Source, config: ImportConfig) -> ChatTemplate:
    """Tokenizer and chat template, tried on a first conversation: the token that ends a turn is known from then on."""
    from dataclasses import replace

    from chattune.tokens._gguf import open_gguf
    from chattune.tokens._hugging_face import found_in
    from chattune.tokens.foreign import ForeignTokenizer

    found = open_gguf(source.path) if source.gguf else found_in(source.path)
    if config.template is not None:
        found = replace(found, template=Path(config.template).read_text(encoding="utf-8"))
    template = ForeignTokenizer(found).template()
    if template.turn_end is not None:
        template.tokenizer.end_turns_with(template.turn_end)
    return template


def _refuse_larger(template: ChatTemplate, model: LanguageModel, source: Source) -> None:
    if template.tokenizer.vocabulary > model.vocabulary:
        raise ArtifactError(
            f"has a tokenizer of {template.tokenizer.vocabulary} tokens, and embeddings for {model.vocabulary}.",
            path=str(source.path), value=template.tokenizer.vocabulary, rule=f"at most {model.vocabulary} tokens",
            hint="Tokenizer and weights do not belong together.",
        )


def _told(found: Description) -> list[str]:
    return [*found.notes, *([f"not followed: {', '.join(found.ignored)}"] if found.ignored else [])]


def _summary(
    source: Source, template: ChatTemplate, model: LanguageModel, found: Description, license: str | None, notes: list[str]
) -> dict[str, Any]:
    tokenizer = template.tokenizer
    return {
        "from": source.package or str(source.path), "kind": found.format,
        "architecture": found.architecture, "parameters": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": tokenizer.vocabulary, "context": model.family.context_length(), "weights": dict(found.dtypes), "license": license,
        "ends": {str(token): _named(template, token) for token in tokenizer.ends}, "notes": notes,
    }  # fmt: skip


def _named(template: ChatTemplate, token: int) -> str:
    return next((text for text, number in template.tokenizer.control_tokens.ids.items() if number == token), str(token))


def _say(summary: dict[str, Any]) -> None:
    talk().print(
        f"import  {summary['architecture']} of {summary['parameters']:,} parameters from {summary['from']} ({summary['kind']}, "
        f"{', '.join(f'{kind} {count}' for kind, count in summary['weights'].items())}; license: {summary['license'] or 'not said'})",
        markup=False,
    )
    ends, sizes = ", ".join(summary["ends"].values()), f"{summary['vocabulary']:,} tokens, a context of {summary['context']:,}"
    talk().print(f"import  {sizes}, replies end with {ends}", markup=False)
    for note in summary["notes"]:
        talk().print(f"import  {note}", markup=False)


def _card(source: Source, summary: dict[str, Any]) -> str:
    license = f"license: {json.dumps(summary['license'])}\n" if summary["license"] else ""
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n{license}tags:\n- chattune\n- conversational\n---\n\n"
        f"# {Path(summary['from']).name}\n\n"
        f"{summary['parameters']:,} parameters ({summary['architecture']}), imported by chattune from {source.path.name}; "
        "not trained further.\n"
        f"License of the weights: {summary['license'] or 'not said; ask where they come from'}.\n\n"
        "Talk to it with `chattune chat`, or load the directory with `transformers.AutoModelForCausalLM` and its chat template.\n"
    )
