"""Material: tokenizers and chat templates of the kinds that other models have, small, as Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "Hello there, how are you doing today? I'm fine, thanks. Don't you like the weather?  Two  spaces.",
    "你好，今天天气怎么样？我很好，谢谢你。你喜欢吃什么？",
    "hello hello there, what is your name? system user assistant", "[INST] model\n\nturn",
    "我的名字叫小明。\r\n\tOK!\n\n  yes 12 345 é", "be brief", "User: Assistant: System: ",
]  # fmt: skip
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # as Llama 3 writes: trimmed contents between headers, the date from a function
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set said = messages[0].content | trim %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set said = '' %}{%- set rest = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n\n' + said + '<|eot_id|>' }}"
    "{%- for message in rest %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
THINKING = (  # as Qwen 3 writes: what the assistant thought is not shown again
    "{%- for message in messages %}{%- set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content and not loop.last %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}{# <think> </think> #}"
)
INST = (  # as Llama 2 writes: turns must alternate, the system message stands inside the first user's
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% set content = first + message['content'] if loop.first else message['content'] %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (  # as Gemma writes
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if message.role == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message.role %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (  # as Phi-3 writes: its control tokens swallow the space after them
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def byte_level(special: list[str], *, split: str | None = None, composed: bool = False, plain: tuple[str, ...] = ()) -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 (`split`) and Qwen (`composed`) have it; control tokens first, `plain` ones are not special."""
    backend = Tokenizer(models.BPE(ignore_merges=split is not None))
    backend.normalizer = normalizers.NFC() if composed else None
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    splits = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, spelling]) if splits else spelling
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return backend


def sentencepiece(special: list[str], kind: str) -> Tokenizer:
    """BPE with byte fallback as Llama 2 (`legacy`: a space before every stretch, `first`: before the first) and Gemma have it."""
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token goes over the beginning of a word
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *special, *bytes_of], show_progress=False)
    learner.train_from_iterator([f" {text}" for text in TEXTS] * 4, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    ending: list[Any] = []
    if kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        ending = [decoders.Strip(" ", 1, 0)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        ending = [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ending])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", *special)])
    return backend


def unigram(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS * 4, trainer)
    data = json.loads(backend.to_str())
    data["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    data["model"]["byte_fallback"] = True
    data["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        ],
    }  # fmt: skip
    return Tokenizer.from_str(json.dumps(data))


def phi(special: list[str]) -> Tokenizer:
    backend = byte_level(["<|endoftext|>"])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False, rstrip=True) for text in special])
    return backend


# name: (tokenizer, template, named tokens)
BRACKETS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADED = ["<|begin|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
KINDS: dict[str, Any] = {
    "gpt2": (lambda: byte_level(BRACKETS), CHATML, {"bos": "<|im_start|>", "eos": "<|im_end|>"}),
    "llama3": (
        lambda: byte_level(HEADED, split=LLAMA3_SPLIT),
        HEADERS, {"bos": "<|begin|>", "eos": "<|eot_id|>"},
    ),
    "qwen": (
        lambda: byte_level(BRACKETS, split=LLAMA3_SPLIT, composed=True, plain=("<think>", "</think>")),
        THINKING, {"eos": "<|im_end|>", "pad": "<|endoftext|>"},
    ),
    "llama2": (lambda: sentencepiece(["<s>", "</s>"], "legacy"), INST, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    "mistral": (lambda: sentencepiece(["<s>", "</s>"], "first"), INST, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    "gemma": (
        lambda: sentencepiece(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "gemma"), TURNS,
        {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>"},
    ),
    "unigram": (lambda: unigram(["<s>", "</s>"]), INST, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    "phi": (lambda: phi(["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]), PHI, {"eos": "<|endoftext|>"}),
}  # fmt: skip


def write(folder: Path, kind: str, **config: Any) -> Path:
    """The directory of a model of that kind, without its weights."""
    make, template, named = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(make().to_str(), "utf-8")
    names = {f"{name}_token": text for name, text in named.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    return folder
