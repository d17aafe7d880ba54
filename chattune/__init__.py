"""chattune: from raw conversations to a served chat model, with the proof of what helped.

    import chattune
    result = chattune.run("configs/demo.yaml", overrides=["train.steps=200"])
    model = chattune.load(result.run)
    print(model.reply("Hello!"))
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    # Imported on use, so that `import chattune` stays instant and knows no torch.
    if name in ("run", "load"):
        return getattr(importlib.import_module("chattune.story"), name)
    raise AttributeError(f"module 'chattune' has no attribute '{name}'")
