"""Run the command line: ``python -m tilereg``."""

from __future__ import annotations

from tilereg.cli import main

if __name__ == "__main__":
    main()
