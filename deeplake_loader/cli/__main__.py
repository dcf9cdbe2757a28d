"""``python -m deeplake_loader.cli``."""

from __future__ import annotations

from deeplake_loader.cli import main

if __name__ == "__main__":
    main()
