"""The command line."""

from lora_trainer.cli.main import main as main
