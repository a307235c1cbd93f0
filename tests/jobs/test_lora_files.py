"""The file tools' documents: defaults, what is checked at once, names for new files, several at the same time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.background import BackgroundTask
from lora_trainer.jobs.requests import DOCUMENTS, PRECISIONS, tool_options
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.lora_file import read_lora, read_metadata, save_lora
from lora_trainer.network.modules import group
from tests.helpers import CHECKPOINT, LIMIT
from tests.network.made import KEYS, delta, lora, some_lora, tensors


class Announced(StandaloneHost):
    """A host that notes what it was told of."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, str(CHECKPOINT))
        self.told: list[Path] = []

    def announce(self, path: Path) -> None:
        assert path.is_file()
        self.told.append(path)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """The jobs of a host with the LoRAs ``a``, ``sub/b`` and the SDXL one ``xl``."""
    made = Jobs(Announced(tmp_path))
    root = made.loras.root
    save_lora(root / "a.safetensors", some_lora(4, 2.0), {"ss_output_name": "a"}, "fp32")
    save_lora(root / "sub" / "b.safetensors", some_lora(3, 3.0, seed=50), {}, "fp32")
    xl = tensors({"lora_te2_text_model_encoder_layers_0_mlp_fc1": lora(4, 4, 2, 1.0)})
    save_lora(root / "xl.safetensors", xl, {}, "fp32")
    return made


def done(jobs: Jobs, kind: str, **body: Any) -> BackgroundTask:
    task = jobs.tools.start(kind, body)
    assert jobs.tools.wait(task, LIMIT)
    assert task.state == "done", task.error
    assert jobs.host.told[-1] == task.result.path  # type: ignore[attr-defined]
    return task


def deltas(path: Path) -> dict[str, np.ndarray]:
    return {key: delta(parts) for key, parts in group(read_lora(path)).items()}


def test_baking_lies_beside_its_file_under_a_free_name(jobs: Jobs) -> None:
    first, second = (done(jobs, "bake", file="b", weight=0.5) for _ in range(2))
    assert [c.result.path.relative_to(jobs.loras.root).as_posix() for c in (first, second)] == [
        "sub/b-baked.safetensors", "sub/b-baked-2.safetensors"
    ]  # fmt: skip
    before, after = deltas(jobs.loras.find("sub/b")), deltas(first.result.path)
    assert all(np.allclose(after[key], 0.5 * before[key]) for key in KEYS)


def test_weights_of_parts_stand_before_the_weight(jobs: Jobs) -> None:
    task = done(jobs, "bake", file="a", weight=0.5, te=1, unet=None, output="parts")
    before, after = deltas(jobs.loras.find("a")), deltas(task.result.path)
    for key in KEYS:
        assert np.allclose(after[key], (1.0 if key.startswith("lora_te") else 0.5) * before[key])


def test_merging_by_lines(jobs: Jobs) -> None:
    task = done(jobs, "merge", files=["a: 0.5", "sub/b: 1: NONE"])
    assert task.result.path == jobs.loras.root / "a-b-merged.safetensors"
    before, after = deltas(jobs.loras.find("a")), deltas(task.result.path)
    assert all(np.allclose(after[key], 0.5 * before[key], atol=1e-6) for key in KEYS)
    assert task.result.facts["ranks"] == [4]
    assert str(task.result.notices[0]).startswith("The weights sum up to 1.5")


@pytest.mark.parametrize(
    ("body", "ranks"),
    [({"rank": 2}, "2"), ({"method": "sv_ratio", "keep": 1}, "2"), ({"method": "sv_fro", "keep": 0.1}, "2")],
)
def test_resizing(jobs: Jobs, body: dict[str, Any], ranks: str) -> None:
    task = done(jobs, "resize", file="a", precision="fp16", **body)
    assert read_metadata(task.result.path)["ss_network_dim"] == ranks
    assert 0 < task.result.facts["error"] < 1


def test_extracting(jobs: Jobs, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(CHECKPOINT)
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    state[name] = state[name] * 1.5
    save_file(state, tmp_path / "tuned.safetensors")
    task = done(jobs, "extract", base=CHECKPOINT.name, tuned=str(tmp_path / "tuned.safetensors"), rank=4)
    assert task.result.path.name == "tuned-extracted.safetensors"
    assert task.result.facts["covered"] == pytest.approx(1.0)
    assert (task.done, task.of) == (task.of, task.done)
    assert task.of > 100


def test_a_name_that_is_awaited_is_not_given_twice(jobs: Jobs) -> None:
    tasks = [jobs.tools.start("bake", {"file": "a", "weight": 0.5}) for _ in range(4)]
    for task in tasks:
        jobs.tools.wait(task, LIMIT)
    assert sorted(c.title for c in tasks) == ["a-baked", "a-baked-2", "a-baked-3", "a-baked-4"]
    assert {c.state for c in tasks} == {"done"}


X17 = ",".join(["1"] * 17)


@pytest.mark.parametrize(
    ("kind", "body", "field", "sentence"),
    [
        ("bake", {}, "file", "choose a LoRA file"),
        ("bake", {"file": "nobody"}, "file", "there is no LoRA file nobody"),
        ("bake", {"file": "a", "weight": "much"}, "weight", "expected a number"),
        ("bake", {"file": "a", "lbw": "NOPE"}, "lbw", "no block preset NOPE"),
        ("bake", {"file": "xl", "lbw": X17}, "lbw", "this LoRA is for SDXL"),
        ("bake", {"file": "a", "lbwe": "IN77:a:1"}, "lbwe", "no block IN77"),
        ("bake", {"file": "a", "output": "a"}, "output", "a-2 is free"),
        ("bake", {"file": "a", "output": "../a"}, "output", "cannot be the name"),
        ("bake", {"file": "a", "colour": 1}, "colour", "no such field"),
        ("merge", {}, "files", "Name at least one LoRA"),
        ("merge", {"files": "a"}, "files", "expected a list of texts"),
        ("merge", {"files": ["a: 1", "nobody: 1"]}, "files", "there is no LoRA file nobody"),
        ("merge", {"files": ["a: 1: start=5"]}, "files", "only in the WebUI"),
        ("merge", {"files": ["a: 1: NOPE"]}, "files", "no block preset NOPE"),
        ("merge", {"files": ["a: 1"], "rank": -1}, "rank", "out of range"),
        ("resize", {"file": "a"}, "rank", "Say how far to resize"),
        ("resize", {"file": "a", "method": "sv_fro", "keep": 2}, "keep", "at most 1"),
        ("resize", {"file": "a", "method": "magic"}, "method", "is not one of"),
        ("resize", {"file": "a", "rank": 2, "precision": "int8"}, "precision", "is not one of"),
        ("extract", {"tuned": "x"}, "base", "choose a checkpoint"),
    ],
)
def test_bad_input_names_its_field_and_begins_nothing(
    jobs: Jobs, kind: str, body: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        jobs.tools.start(kind, body)
    first = getattr(error.value, "errors", [error.value])[0]
    assert first.field == field
    assert jobs.tools.list() == []


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("bake", {"file": "a", "weight": 0}, "nothing of the LoRA is left"),
        ("merge", {"files": ["a: 1", "xl: 1"]}, "only LoRAs of one architecture"),
        ("extract", {"base": "/nowhere.safetensors", "tuned": CHECKPOINT.name}, "is not a .safetensors checkpoint"),
    ],
)
def test_what_shows_only_while_working_is_the_tasks_sentence(
    jobs: Jobs, kind: str, body: dict[str, Any], sentence: str
) -> None:
    before = jobs.loras.names()
    task = jobs.tools.start(kind, body)
    assert jobs.tools.wait(task, LIMIT)
    assert task.state == "failed"
    assert sentence in str(task.error)
    assert jobs.loras.names() == before


def test_where_others_come_in_only_allowed_folders_are_read(jobs: Jobs, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(jobs.loras.find("a").read_bytes())
    assert done(jobs, "bake", file="a").result.path.parent == jobs.loras.root
    with pytest.raises(InputError, match="no LoRA file"):
        jobs.tools.start("bake", {"file": str(outside)})
    task = jobs.tools.start("bake", {"file": str(outside)}, outside=True)
    assert jobs.tools.wait(task, LIMIT)
    assert task.result.path == jobs.loras.root / "outside-baked.safetensors"
    jobs.host.readable = [jobs.loras.root]
    for kind, body in (
        ("bake", {"file": str(outside)}),
        ("bake", {"file": "a", "checkpoint": str(outside)}),
        ("extract", {"base": CHECKPOINT.name, "tuned": str(outside)}),
    ):
        with pytest.raises(InputError, match="may not be read"):
            jobs.tools.start(kind, body, outside=True)


def test_own_presets_are_used(jobs: Jobs) -> None:
    jobs.host.folders.presets.mkdir(parents=True)
    text = "MINE:0.5" + ",0" * 16
    (jobs.host.folders.presets / "lbwpresets.txt").write_text(text, encoding="utf-8")
    assert "MINE" in jobs.tools.preset_names("a")
    assert "MINE" not in jobs.tools.preset_names("xl")
    assert done(jobs, "bake", file="a", lbw="MINE").result.facts["lbw"] == text.partition(":")[2]


def test_info_is_json(jobs: Jobs) -> None:
    found = json.loads(json.dumps(jobs.tools.info("b")))
    assert (found["modules"], found["ranks"]) == (4, [3])
    with pytest.raises(InputError) as error:
        jobs.tools.info("")
    assert error.value.field == "name"


def test_every_field_has_a_title_and_its_default_is_allowed() -> None:
    for kind in DOCUMENTS:
        for item in tool_options(kind):
            assert item.title
            assert item.help
            assert not item.choices or item.default in item.choices
    assert set(PRECISIONS[1:]) == {"fp16", "bf16", "fp32"}


_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.text(max_size=9))


@given(st.sampled_from(sorted(DOCUMENTS)), st.data())
def test_no_document_makes_an_internal_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    fields = [item.path for item in tool_options(kind)]
    body = data.draw(st.dictionaries(st.sampled_from(fields), _values))
    jobs = Jobs(StandaloneHost(tmp_path_factory.getbasetemp() / "fuzz"))
    with pytest.raises(InputError):
        jobs.tools.start(kind, body)
