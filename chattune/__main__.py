"""``python -m chattune``, which is also how torchrun starts it: ``torchrun --nproc-per-node 2 -m chattune train …``."""

from chattune.cli import main

raise SystemExit(main())
