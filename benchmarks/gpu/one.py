"""One check in a process of its own: ``-m benchmarks.gpu.one MODULE:FUNCTION RESULT SETTING``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.notes import Notes
from benchmarks.gpu.setting import Setting


def main() -> None:
    entry, result, document = sys.argv[1:]
    module, _, function = entry.partition(":")
    notes = Notes(Path(result))
    getattr(importlib.import_module(module), function)(Setting(**json.loads(document)), notes)
    notes.finish()


if __name__ == "__main__":
    main()
