"""Batches of mixes: drawn by the embedded host as files side by side, and by a host that reads tags as they are."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import DrawRequest, LoraUse, ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.kinds import DRAWING
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.families import SD1
from lora_trainer.network.adapters import add_adapters
from lora_trainer.network.blocks.stack import MixRule, parse_stack
from lora_trainer.network.lora_file import save_lora
from lora_trainer.validation.mixes import DOCUMENT, TABLE, MixPlan, draw_mixes
from tests.helpers import LIMIT, temporary_files
from tests.network.made import EVERY, KEYS, tensors
from tests.network.plain import randomise

SMALL = {"prompt": "zorp", "width": 64, "height": 64, "steps": 2, "seed": 5}


class Painter:
    """A session that reads tags: its pictures are one colour, that of the prompt."""

    def __init__(self, fails_at: int = 0) -> None:
        self.prompts: list[str] = []
        self._fails_at = fails_at

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        assert lora is None
        (request,) = requests
        self.prompts.append(request.prompt)
        if len(self.prompts) == self._fails_at:
            raise InputError("It failed.")
        colour = hashlib.sha256(request.prompt.encode()).digest()
        image = Image.new("RGB", (8, 8), (colour[0], colour[1], colour[2]))
        image.info["parameters"] = f"{request.prompt}\nSteps: 1"
        return [image]

    def draw_settings(self) -> str:
        return ""


def made_plan(folder: Path, count: int = 3, **rule: Any) -> MixPlan:
    files = {name: folder / f"{name}.safetensors" for name in ("人物", "style")}
    for path in files.values():
        if not path.exists():
            path.touch()
    request = DrawRequest("1girl, best quality", width=64, height=64)
    return MixPlan(parse_stack("人物: 0.7\nstyle: 0.5: OUTALL"), files, count, MixRule(**rule), request)


def test_a_batch_is_on_disk_with_its_weights(tmp_path: Path) -> None:
    plan, painter = made_plan(tmp_path), Painter()
    made = draw_mixes(plan, painter, tmp_path / "mixes", reads_tags=True)  # type: ignore[arg-type]
    assert json.loads((made.folder / DOCUMENT).read_text(encoding="utf-8")) == made.document
    assert painter.prompts == [mix["prompt"] for mix in made.document["mixes"]]
    rows = list(csv.DictReader(io.StringIO((made.folder / TABLE).read_text(encoding="utf-8"))))
    for mix, row, stack in zip(made.document["mixes"], rows, plan.stacks(), strict=True):
        assert mix["prompt"] == f"1girl, best quality {mix['tags']}"
        assert mix["weights"] == stack.weights == {name: float(row[name]) for name in ("人物", "style")}
        assert mix["total"] <= 1.2
        with Image.open(mix["picture"]) as picture:
            assert picture.info["parameters"].splitlines()[0] == mix["prompt"]
    assert not temporary_files(tmp_path)


def test_an_equal_batch_goes_on_where_it_was_and_a_longer_one_draws_what_is_missing(tmp_path: Path) -> None:
    broken = Painter(fails_at=3)
    with pytest.raises(InputError, match="It failed"):
        draw_mixes(made_plan(tmp_path), broken, tmp_path / "mixes", reads_tags=True)  # type: ignore[arg-type]
    (document,) = (tmp_path / "mixes").glob(f"*/{DOCUMENT}")
    assert len(json.loads(document.read_text(encoding="utf-8"))["mixes"]) == 2
    (document.parent / "0001.png").write_bytes(b"damaged")
    painter = Painter()
    seen: list[tuple[int, int, int]] = []
    made = draw_mixes(
        made_plan(tmp_path, 4), painter, tmp_path / "mixes", reads_tags=True,  # type: ignore[arg-type]
        progress=lambda done, of, mixed: seen.append((done, of, len(mixed.document["mixes"]))),
    )  # fmt: skip
    assert made.folder == document.parent
    assert painter.prompts == [made.document["mixes"][index]["prompt"] for index in (0, 2, 3)]
    assert seen == [(n, 4, n) for n in range(5)]


def test_what_changes_the_pictures_makes_another_batch(tmp_path: Path) -> None:
    plan = made_plan(tmp_path)
    others = [made_plan(tmp_path, seed=2), made_plan(tmp_path, spread=0.2), plan.on(_checkpoint())]
    keys = {each.key() for each in (plan, *others)} | {plan.key("Clip skip: 2")}
    (tmp_path / "style.safetensors").write_bytes(b"trained further")
    assert len(keys | {plan.key()}) == 6
    assert made_plan(tmp_path, count=9).key() == plan.key()


def _checkpoint() -> Any:
    from lora_trainer.model.families import SD1, CheckpointInfo

    return CheckpointInfo("model.safetensors", "ab", "", SD1, "epsilon")


# ------------------------------------------------------------------ the embedded host
@pytest.fixture(scope="module")
def host(standalone: StandaloneHost) -> StandaloneHost:
    """The embedded host with the LoRAs ``one`` and ``two``, and ``same``, which is ``one`` again."""
    for name in ("one", "two"):
        with standalone.session(ModelRequest()) as session:
            model = session.model
            adapters = add_adapters(model.parts, SD1, rank=2 if name == "one" else 3, alpha=2.0)
            trained = randomise(adapters, 0.1 if name == "one" else 0.15)
        save_lora(standalone.folders.loras / f"{name}.safetensors", trained, {}, "fp32")
    shutil.copy(standalone.folders.loras / "one.safetensors", standalone.folders.loras / "same.safetensors")
    return standalone


@pytest.fixture
def mixing(host: StandaloneHost) -> Jobs:
    return Jobs(host)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def alone(host: StandaloneHost, name: str, weight: float, lbw: str = "") -> np.ndarray:
    """The picture with one file, as :class:`LoraUse` draws it."""
    with host.session(ModelRequest()) as session, session.turn():
        (image,) = session.draw(
            [DrawRequest(**SMALL)], LoraUse(host.folders.loras / f"{name}.safetensors", weight, lbw)
        )  # type: ignore[arg-type]
    return np.asarray(image).astype(float)


def drawn(mixing: Jobs, stack: str, **values: Any) -> dict[str, Any]:
    size = {key: value for key, value in SMALL.items() if key != "seed"}
    task = mixing.tools.start("mix", {"stack": stack, "count": 1, "picture_seed": 5, **size, **values})
    assert mixing.tools.wait(task, LIMIT)
    assert task.state == "done", task.error
    return task.result.to_dict()


def test_two_halves_of_one_lora_are_the_whole(mixing: Jobs, host: StandaloneHost) -> None:
    found = drawn(mixing, "one: 0.6\nsame: 0.4", count=2)
    for mix in found["mixes"]:
        whole = alone(host, "one", mix["total"])
        assert np.abs(pixels(mix["picture"]) - whole).max() <= 1
    assert np.abs(pixels(found["mixes"][0]["picture"]) - pixels(found["mixes"][1]["picture"])).max() > 1


def test_block_weights_and_both_files_count(mixing: Jobs, host: StandaloneHost) -> None:
    (mix,) = drawn(mixing, "one: 0.9: OUTALL\ntwo: 0")["mixes"]
    weight = mix["weights"]["one"]
    assert np.abs(pixels(mix["picture"]) - alone(host, "one", weight, "OUTALL")).max() <= 1
    (both,) = drawn(mixing, "one: 0.9: OUTALL\ntwo: 0.9")["mixes"]
    assert np.abs(pixels(both["picture"]) - pixels(mix["picture"])).max() > 1


def test_infotext_has_the_tags_and_no_temporary_file_is_left(mixing: Jobs) -> None:
    found = drawn(mixing, "one: 0.6\ntwo: 0.4")
    with Image.open(found["mixes"][0]["picture"]) as image:
        lines = image.info["parameters"].splitlines()
    assert lines[0] == found["mixes"][0]["prompt"] == f"zorp {found['mixes'][0]['tags']}"
    assert lines[-1].startswith("Steps: 2, Sampler: Euler a")
    assert not list(Path(found["folder"]).glob("*.safetensors"))


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        ({"stack": ""}, "stack", "Name at least one LoRA"),
        ({"stack": "nobody: 1"}, "stack", "there is no LoRA file nobody"),
        ({"stack": "one: 0"}, "", "All weights are 0"),
        ({"stack": "one: 1", "count": 0}, "count", "out of range"),
        ({"stack": "one: 1", "spread": 1}, "spread", "below 1"),
        ({"stack": "one: 1", "method": "normal"}, "method", "is not one of"),
        ({"stack": "one: 1", "width": 65}, "width", "multiple of 8"),
        ({"stack": "one: 1", "checkpoint": "/nowhere.safetensors"}, "checkpoint", "does not exist"),
        ({"stack": "one: 1: start=5"}, "stack", "only in the WebUI"),
        ({"stack": "one: 1: NOPE"}, "stack", "no block preset NOPE"),
        ({"stack": "one: 1: lbwe=NOPE"}, "stack", "neither an element preset"),
        ({"stack": "one: 1", "colour": "red"}, "colour", "no such field"),
        ({"stack": "one: 1\none.safetensors: 1"}, "stack", "have one name"),
    ],
)
def test_bad_input_is_said_before_anything_is_drawn(
    mixing: Jobs, body: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        mixing.tools.start("mix", body)
    assert error.value.field == field
    assert mixing.tools.list(DRAWING) == []


def test_what_fails_while_drawing_is_a_sentence_and_leaves_nothing(mixing: Jobs) -> None:
    loha = tensors({KEYS[1]: EVERY["loha"]})
    save_file(loha, mixing.loras.root / "loha.safetensors")
    task = mixing.tools.start(
        "mix", {"stack": "loha: 1", "count": 1, **{k: v for k, v in SMALL.items() if k != "seed"}}
    )
    assert mixing.tools.wait(task, LIMIT)
    assert task.state == "failed"
    assert "LoHa" in str(task.error)
    assert not list((mixing.host.folders.runs.parent / "mixes").rglob("*.safetensors"))
