"""What the steps of a run depend on of its data set, as one number."""

from __future__ import annotations

import hashlib

from lora_trainer.dataset.scan import Dataset


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 over what the steps of a run depend on: contents, captions, repeats and crops, in order."""
    digest = hashlib.sha256()
    for item in dataset.items:
        digest.update(repr((item.key, item.caption, item.repeats, item.fit)).encode())
    return digest.hexdigest()
