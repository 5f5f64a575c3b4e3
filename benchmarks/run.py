"""`python benchmarks/run.py` is `python -m benchmarks`, from any working directory."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder stands first on the path; the package is found from the folder above it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from benchmarks.__main__ import main

    sys.exit(main())
