"""The host tests need a real WebUI; without one they are skipped, loudly."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_trainer.demo import drawings
from tests.webui.real import webui as host

REASON = host.missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REASON:
        warnings.warn(REASON, stacklevel=1)
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.WebUI]:
    with host.WebUI(tmp_path_factory.mktemp("webui")) as running:
        yield running


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(3)
    for index in range(6):
        scene = drawings.zorp_scene(rng)
        size = (128, 128) if index % 2 else (160, 128)
        drawings.draw(scene, *size, rng=rng).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(", ".join(scene.tags()), encoding="utf-8")
    return folder
