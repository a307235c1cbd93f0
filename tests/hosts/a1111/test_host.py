"""What the WebUI tells and is told, and a whole run in it: see :mod:`tests.fake_webui`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.blocks.block_map import SD, SDXL
from tests.fake_webui import FakeWebUI
from tests.helpers import LIMIT
from tests.runs_helpers import document, weights


@pytest.fixture
def host(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return A1111Host()


def test_folders_are_the_webuis(webui: FakeWebUI, host: Any) -> None:
    own = webui.data / "lora-train"
    assert host.folders.loras == webui.loras
    assert (host.folders.runs, host.folders.cache, host.folders.presets) == (
        own / "runs",
        own / "cache",
        own / "presets",
    )
    assert (host.name, host.reads_tags) == ("a1111", True)


def test_reachable_from_elsewhere_only_its_own_folders_are_read(webui: FakeWebUI, host: Any) -> None:
    from lora_trainer.hosts.a1111.host import A1111Host

    assert host.readable is None
    webui.shared.cmd_opts.disable_extension_access = True
    webui.shared.cmd_opts.gradio_allowed_path = ["/pictures"]
    assert A1111Host().readable == [webui.data, Path("/pictures")]


def test_the_page_is_asked(webui: FakeWebUI, host: Any) -> None:
    assert host.samplers() == webui.sd_samplers.visible_sampler_names()
    assert host.chosen_checkpoint() == webui.title("small")
    assert host.native_resolution(ModelRequest()) == 128  # of the yaml in use
    assert (host.is_common_word("red"), host.is_common_word("zzqzorpz")) == (True, False)
    webui.sd_models.model_data.sd_model = None
    assert host.native_resolution(ModelRequest()) == 512
    assert not host.is_common_word("red")


@pytest.mark.parametrize(
    ("name", "language"), [("None", "en"), ("zh_CN", "zh"), ("Chinese-All", "zh"), ("简体", "zh"), ("de_DE", "en")]
)
def test_the_language_is_that_of_the_page(webui: FakeWebUI, host: Any, name: str, language: str) -> None:
    from lora_trainer.hosts.a1111.settings import sentence

    webui.shared.opts.data["localization"] = name
    assert host.language() == language
    error = InputError("There is no LoRA file named {name}; names of files count, not aliases.", name="x")
    assert (sentence(error) == str(error)) == (language == "en")


def test_block_presets_are_ours_else_those_of_the_other_extension(webui: FakeWebUI, host: Any) -> None:
    def lists(folder: Path, first: int, stamp: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lbwpresets.txt").write_text(f"MINE:{first}{',1' * 16}\n", encoding="utf-8")
        os.utime(folder / "lbwpresets.txt", (stamp, stamp))

    assert host.block_presets().find("MINE", SD) is None
    other = webui.extensions.Extension("lbw", str(webui.data / "lbw"), enabled=False)
    webui.extensions.extensions.append(other)
    lists(webui.data / "lbw" / "scripts", 0, 1)
    assert host.block_presets().find("MINE", SD) == "0" + ",1" * 16
    lists(host.folders.presets, 1, 1)
    assert host.block_presets().find("MINE", SD) == "1" + ",1" * 16
    lists(host.folders.presets, 0, 2)
    assert host.block_presets().find("MINE", SD) == "0" + ",1" * 16


def test_kinds_of_checkpoints_have_their_blocks(webui: FakeWebUI) -> None:
    from lora_trainer.hosts.a1111.settings import architecture

    assert architecture() is SD
    webui.model.is_sd1, webui.model.is_sdxl = False, True
    assert architecture() is SDXL
    webui.model.is_sdxl = False
    assert architecture() is None


def test_a_new_file_is_known_by_its_own_name_where_another_has_it_as_alias(webui: FakeWebUI, host: Any) -> None:
    webui.add_lora("new-000001", ss_output_name="new")
    webui.networks.list_available_networks()
    path = webui.add_lora("new", ss_output_name="new")
    host.announce(path)
    webui.networks.load_networks(["new"])
    assert webui.networks.loaded_networks[0].network_on_disk.filename == str(path)


# ------------------------------------------------------------------ a whole run
def test_a_run_leaves_the_host_as_it_was_and_its_file_draws(webui: FakeWebUI, host: Any, tmp_path: Path) -> None:
    before, flags = webui.weights(), [p.requires_grad for p in webui.model.parameters()]
    picture = webui.picture("zorp")
    values = document(tmp_path, samples__prompts=["zorp"], samples__width=64, samples__height=64, samples__seed=1)
    jobs, files = Jobs(host), []
    try:
        for name in ("one", "two"):
            run = jobs.submit(TrainConfig.from_dict({**values, "name": name}))
            assert jobs.wait(run, LIMIT)
            assert run.state == "done", run.manifest["message"]
            files.append(weights(run))
    finally:
        jobs.shutdown()
    assert files[0] == files[1]
    assert all(torch.equal(value, before[name]) for name, value in webui.model.state_dict().items())
    assert [p.requires_grad for p in webui.model.parameters()] == flags
    path = Path(run.manifest["files"][-1]["path"])
    assert path.parent == webui.loras / "two"
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sd version"] == "SD1"
    assert webui.picture("zorp") == picture
    assert webui.picture("zorp<lora:two:1>") != picture
