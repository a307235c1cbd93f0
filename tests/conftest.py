"""What every test may use. Nothing here reaches the network, and examples are the same in every run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, see _one_thread

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import CHECKPOINT, draw_pictures

if TYPE_CHECKING:
    from lora_trainer.hosts.standalone.host import StandaloneHost
    from lora_trainer.model.loaded import LoadedModel
    from tests.fake_webui import FakeWebUI

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The small checkpoint gains nothing from more threads, and they wait for each other on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Four drawn pictures with captions."""
    draw_pictures(tmp_path / "pictures")
    return tmp_path / "pictures"


@pytest.fixture(scope="session")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """The embedded host with the small checkpoint, which it loads once."""
    from lora_trainer.hosts.standalone.host import StandaloneHost

    return StandaloneHost(tmp_path_factory.mktemp("host"), str(CHECKPOINT))


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shape as the small one with other weights."""
    from tests.fake_webui import write_other

    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    write_other(path)
    return path


@pytest.fixture
def webui(tmp_path: Path, other_checkpoint: Path) -> Iterator[FakeWebUI]:
    """A WebUI that has just started in this process; gone with everything that was imported for it after the test."""
    from tests.fake_webui import fake_webui

    with fake_webui(tmp_path / "webui", other_checkpoint) as running:
        yield running


@pytest.fixture
def model(standalone: StandaloneHost) -> Iterator[LoadedModel]:
    """A fresh view of the small checkpoint: adapters put on it are gone with it."""
    from lora_trainer.hosts.base import ModelRequest

    with standalone.session(ModelRequest()) as session:
        yield session.model
