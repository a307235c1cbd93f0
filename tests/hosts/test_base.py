"""What every host has."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.hosts.base import Host, HostPage, LoraStore, ModelHost, ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.network.blocks.block_map import SD
from tests.fake_webui import FakeWebUI
from tests.helpers import CHECKPOINT, config


def _standalone(webui: FakeWebUI, folder: Path) -> Any:
    return StandaloneHost(folder, str(CHECKPOINT))


def _a1111(webui: FakeWebUI, folder: Path) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return A1111Host()


HOSTS = [_standalone, _a1111]
"""A new one comes in here."""


@pytest.fixture(params=HOSTS, ids=[make.__name__ for make in HOSTS])
def host(request: pytest.FixtureRequest, webui: FakeWebUI, tmp_path: Path) -> Any:
    return request.param(webui, tmp_path)


def members(protocol: type) -> set[str]:
    """Names of a protocol's methods and fields, without those that every class has."""
    own = {name for name in vars(protocol) if not name.startswith("_")} | set(inspect.get_annotations(protocol))
    return own.union(*(members(base) for base in protocol.__bases__ if base.__module__ == protocol.__module__))


def test_a_host_is_its_three_parts_and_they_share_nothing() -> None:
    parts = [members(part) for part in (ModelHost, LoraStore, HostPage)]
    assert members(Host) == set().union(*parts)
    assert sum(map(len, parts)) == len(members(Host))


def test_it_has_everything_with_the_same_arguments(host: Any) -> None:
    for name in members(Host):
        ours = getattr(host, name)
        if any(name in vars(part) for part in (ModelHost, LoraStore, HostPage)):
            wanted = list(inspect.signature(getattr(Host, name)).parameters)[1:]
            assert list(inspect.signature(ours).parameters) == wanted, name


def test_a_request_for_nothing_is_for_the_hosts_own_checkpoint(host: Any) -> None:
    info = host.check(ModelRequest())
    assert info.family.name == "SD1"
    assert host.native_resolution(ModelRequest()) == 128
    with host.session(ModelRequest(clip_skip=2, work="test")) as session:
        assert session.model.clip_skip == 2
        assert session.model.info.sha256 == info.sha256


def test_what_a_host_tells_is_of_its_kind(host: Any) -> None:
    assert host.language() in ("en", "zh")
    assert "Euler a" in host.samplers()
    assert all(path.suffix == ".safetensors" for path in host.checkpoints())
    assert "OUTALL" in host.block_presets().names(SD)
    assert isinstance(host.chosen_checkpoint(), str)
    assert host.words("zorp") in ((), [])


def test_a_request_of_a_run_is_what_its_settings_say() -> None:
    settings = config(checkpoint="a.safetensors", training__clip_skip=2)
    assert ModelRequest.of(settings) == ModelRequest("a.safetensors", 2, "test")
    assert ModelRequest.of(config()) == ModelRequest(work="test")
