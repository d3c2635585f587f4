"""The ``whit`` command: replaces this process by the program that comes with the package."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Runs the program with this process's arguments; does not return."""
    program = Path(__file__).parent / "bin" / "whit"
    os.execv(program, ["whit", *sys.argv[1:]])


if __name__ == "__main__":
    main()
