"""``python -m lora_trainer``."""

import sys

from lora_trainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
