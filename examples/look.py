"""Print the rows of one SQL statement.

python examples/look.py demo-store "SELECT prompt, frames, steps FROM generations WHERE steps > 30 LIMIT 5"
"""

from __future__ import annotations

import sys

import deeplake_loader as deeplake


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} STORE SQL")
    with deeplake.connect(sys.argv[1], create=False, read_only=True) as db:
        for row in db.execute(sys.argv[2]):
            print(row)


if __name__ == "__main__":
    main()
