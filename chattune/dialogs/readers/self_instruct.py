"""Self-Instruct: an instruction with instances of input and output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chattune.core.part import setting
from chattune.dialogs.dialog import Dialog, Drop, Message
from chattune.dialogs.readers import Reader
from chattune.dialogs.rows import Unusable, first_rows, kind_of, many_of_rows, share, text_of


class SelfInstruct(Reader):
    """Rows ``{"instruction", "instances": [{"input", "output"}]}``: a dialog for each instance.

    Helps when: data are seed tasks or what was made from them.   Hurts when: never.
    Cost: one row in memory.   Start with: the defaults.
    Source: Wang et al. 2022, arXiv:2212.10560, and its repository. The instances of one instruction are a group, which a split does not
    tear apart; instruction and input are joined as the reader of Alpaca does.
    """

    joint: str = setting("\n\n", "what stands between instruction and input in the user's message")

    def read(self, path: Path) -> Iterator[Dialog | Drop]:
        return many_of_rows(path, self.encoding, self.record_limit, "self_instruct", self._build)

    def score(self, path: Path, head: str) -> float:
        return share(first_rows(head), lambda row: "instruction" in row and isinstance(row.get("instances"), list))

    def _build(self, row: Mapping[str, Any]) -> Iterator[tuple[str, list[Message], dict[str, Any]]]:
        instruction, instances = text_of(row.get("instruction"), "instruction"), row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise Unusable("no_messages", f"instances is {kind_of(instances)}" if instances != [] else "no instance")
        metadata = {key: value for key, value in row.items() if key not in ("id", "group", "instruction", "instances")}
        pairs = []
        for instance in instances:
            if not isinstance(instance, Mapping):
                raise Unusable("wrong_type", f"an instance is {kind_of(instance)}")
            pairs.append((text_of(instance.get("input") or "", "input"), text_of(instance.get("output"), "output")))
        for number, (extra, output) in enumerate(pairs, 1):
            asked = self.joint.join(filter(str.strip, (instruction, extra)))
            yield "" if len(pairs) == 1 else f"/{number}", [Message("user", asked), Message("assistant", output)], metadata
