"""``python -m lora_trainer``."""

import sys

from lora_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
