"""The helper process that tries a schema of a stranger. A program, not a module: it is started by its path, and imports nothing of
chattune.

Where regular expressions meet (two patterns that both hold, remainders of several divisors) llguidance may need seconds and gigabytes
to find what satisfies them, and nothing can stop it but the end of its process. What is done here within its limits is done there.
"""

from __future__ import annotations

import json
import resource
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

SECONDS, MEMORY = 2, 1 << 29  # of the processor; bytes of addresses


class Bytes:
    """A vocabulary of the bytes and an end; what a grammar costs before any token depends on nothing else."""

    eos_token_id, bos_token_id, special_token_ids, is_tokenizer_wrapper = 256, None, (), True
    tokens = [*(bytes([byte]) for byte in range(256)), b""]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    limits = {resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    request = json.load(sys.stdin)
    tokenizer = LLTokenizer(Bytes(), eos_token=256, slices=[])  # type: ignore[arg-type]  # any object with these attributes will do
    matcher = LLMatcher(tokenizer, request["grammar"], log_level=0, limits=LLParserLimits(**request["limits"]))
    if not matcher.is_error():
        matcher.compute_bitmask()
    print(json.dumps(matcher.get_error()))


if __name__ == "__main__":
    main()
