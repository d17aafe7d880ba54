"""``python -m chattune.cli``."""

from chattune.cli import main

raise SystemExit(main())
