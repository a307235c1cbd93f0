"""What every check is given: where its files are, and whether it runs small on a CPU."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.material import Material
    from lora_trainer.config.train import TrainConfig

NOT_ON_A_CPU = "not on a CPU"
"""Stands in a result where a figure has no meaning without a card, so that nothing passes silently."""


@dataclass(frozen=True)
class Setting:
    """The same for all checks of a sitting; it travels to their processes as JSON.

    Attributes:
        folder: scratch, gone after the sitting.
        cpu: the small checkpoint, small shapes and few steps.
        peer: folder with sd-scripts and its wheels, empty where none is carried.
    """

    folder: str
    cpu: bool = False
    peer: str = ""

    @property
    def place(self) -> Path:
        """The scratch folder."""
        return Path(self.folder)

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return 64 if self.cpu else 512

    def material(self) -> Material:
        """Checkpoint, tokenizer and pictures; made when they are missing."""
        from benchmarks.material import FOLDER, prepare

        os.environ[FOLDER] = str(self.place / "material")
        found = prepare(self.side, full_size=not self.cpu)
        os.environ["LORA_TRAIN_CLIP"] = str(found.tokenizer)
        return found

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The common work (rank 16, the UNet only, captions not shuffled) with dotted keys replaced."""
        from lora_trainer.config.train import TrainConfig

        material = self.material()
        common = {
            "name": "bench",
            "checkpoint": str(material.checkpoint),
            "data": {"folder": str(material.pictures), "resolution": self.side, "bucket_step": 32, "shuffle": False},
            "network": {"rank": 16, "alpha": 8},
            "training": {
                "steps": 1000, "unet_lr": 1e-4, "text_lr": 0.0, "scheduler": "constant", "seed": 1, "clip_skip": 1,
                "min_snr_gamma": 0.0,
            },
            "samples": {"steps": 1, "width": 64, "height": 64},
        }  # fmt: skip
        return TrainConfig.from_dict(common).with_values(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)
