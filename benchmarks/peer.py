"""sd-scripts with the stopwatch in it; runs under its own interpreter: ``-m benchmarks.peer FOLDER ARGUMENTS…``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from benchmarks.clock import Clock, hand_in


def main() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry)]
    sys.argv = [str(folder / "train_network.py"), *arguments]
    clock = Clock()
    runpy.run_path(sys.argv[0], run_name="__main__")
    hand_in({"train": clock.result()})


if __name__ == "__main__":
    main()
