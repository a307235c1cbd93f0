"""What blocks do to pictures: numbers against their formulas on drawn pictures, and a small analysis on the model."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import InputError
from lora_trainer.core.files import file_hash
from lora_trainer.hosts.base import DrawRequest, LoraUse, ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.block_lists import SD
from lora_trainer.model.families import SD1, SDXL, CheckpointInfo
from lora_trainer.network.blocks.block_map import block_of
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.network.modules import group
from lora_trainer.validation.blocks.ablation import AnalysisPlan, analyze, changed_share, plan_analysis
from tests.network.made import KEYS, lora, some_lora, tensors

LIKE = DrawRequest("", width=24, height=16, steps=3)
PROMPTS = ["zorp, red", "red circle"]
CHECKPOINT = CheckpointInfo("a.safetensors", "ab", "", SD1, "epsilon")
STRENGTH = {"TE1": (2.0, 40.0), "IN01": (60.0, 5.0), "M00": (0.0, 0.0), "OUT03": (9.0, 9.0)}
"""How much each block adds to a pixel, with the trigger word and without it."""


class Painter:
    """A session whose pictures are sums of what the blocks add, so that every number is known."""

    def __init__(self) -> None:
        self.drawn: list[tuple[list[DrawRequest], LoraUse | None]] = []
        self.most = 99
        self.inside = False

    @contextmanager
    def turn(self, *, drawing: bool = False) -> Iterator[None]:
        self.inside = drawing
        yield
        self.inside = False

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        assert self.inside
        if len(requests) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        assert len({replace(r, prompt="", seed=0) for r in requests}) == 1
        self.drawn.append((list(requests), lora))
        return [Image.fromarray(picture(r, lora)) for r in requests]


def added(prompt: str, lora: LoraUse | None) -> float:
    if lora is None:
        return 0.0
    weights = resolve(lora.lbw, SD)
    blocks = dict(zip(weights.blocks, weights.weights, strict=True))
    place = 0 if "zorp" in prompt else 1
    return sum(lora.weight * blocks[b.replace("TE1", "BASE")] * STRENGTH[b][place] for b in STRENGTH)


def picture(request: DrawRequest, lora: LoraUse | None) -> np.ndarray:
    noise = np.random.default_rng(request.seed).integers(0, 100, (request.height, request.width, 3))
    spread = np.random.default_rng(9).uniform(0.5, 1.0, (request.height, request.width, 3))
    spread *= 1 + request.seed / 10
    return (noise + added(request.prompt, lora) * spread).clip(0, 255).astype(np.uint8)


def numbers(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return float(np.sqrt((apart**2).mean()) / 255), float((apart > 20).mean())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "zorp.safetensors"
    save_file(some_lora(), path)
    return path


@pytest.fixture
def plan(file: Path) -> AnalysisPlan:
    return plan_analysis(file, PROMPTS, [1, 2], LIKE, trigger="zorp").on(CHECKPOINT)


def test_every_number_is_its_formula_over_prompts_and_seeds(plan: AnalysisPlan, tmp_path: Path) -> None:
    document = analyze(plan, Painter(), tmp_path / "out")  # type: ignore[arg-type]
    full = LoraUse(plan.file, 1.0)
    for entry in document["blocks"]:
        only, without = (LoraUse(plan.file, 1.0, entry[f"lbw_{kind}"]) for kind in ("only", "without"))
        for prompt, found in ((PROMPTS[0], entry), (PROMPTS[1], entry["leak"])):
            requests = [replace(LIKE, prompt=prompt, seed=seed) for seed in (1, 2)]
            for kind, pair in (("only", (None, only)), ("without", (full, without))):
                each = [numbers(picture(r, pair[0]), picture(r, pair[1])) for r in requests]
                for place, name in enumerate(("rms", "share")):
                    values = [value[place] for value in each]
                    assert found[kind][name] == pytest.approx(statistics.fmean(values))
                    assert found[kind][f"{name}_sd"] == pytest.approx(statistics.stdev(values))
        assert entry["effect"] == pytest.approx((entry["only"]["rms"] + entry["without"]["rms"]) / 2)
    assert [entry["block"] for entry in document["blocks"]] == ["IN01", "OUT03", "TE1", "M00"]
    assert [entry["rank"] for entry in document["blocks"]] == [1, 2, 3, 4]


def test_the_lists_have_one_block_or_all_but_one(plan: AnalysisPlan) -> None:
    keys = list(group(some_lora()))
    for block, (only, without) in plan.lists.items():
        for lbw, inside, outside in ((only, 1, 0), (without, 0, 1)):
            assert len(lbw.split(",")) == 17
            weights = resolve(lbw, SD)
            for key in keys:
                assert weights.ratio(key) == (
                    inside if (block_of(key) or "").replace("BASE", "TE1") == block else outside
                )


def test_a_file_with_convolutions_has_the_long_lists(tmp_path: Path) -> None:
    path = tmp_path / "conv.safetensors"
    save_file(
        {**some_lora(), **tensors({"lora_unet_down_blocks_3_resnets_0_conv1": lora(4, 4, 2, 1.0, kernel=3)})}, path
    )
    plan = plan_analysis(path, ["a"], [1], LIKE)
    assert {len(lbw.split(",")) for pair in plan.lists.values() for lbw in pair} == {26}
    assert list(plan.lists) == ["TE1", "IN01", "IN10", "M00", "OUT03"]


def test_nothing_is_drawn_twice_and_an_interrupted_analysis_goes_on(plan: AnalysisPlan, tmp_path: Path) -> None:
    painter = Painter()

    def stop(done: int, of: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(plan, painter, tmp_path / "out", together=4, on_cells=stop)  # type: ignore[arg-type]
    before = sum(len(requests) for requests, _ in painter.drawn)
    assert 10 <= before < len(plan.cells())
    document = analyze(plan, painter, tmp_path / "out")  # type: ignore[arg-type]
    cells = [(r, lora) for requests, lora in painter.drawn for r in requests]
    assert len(cells) == len(plan.cells()) == 4 * (2 + 2 * 4)
    assert all(cells.count(cell) == 1 for cell in cells)
    count = len(painter.drawn)
    assert analyze(plan, painter, tmp_path / "out") == document  # type: ignore[arg-type]
    assert len(painter.drawn) == count


def test_pictures_are_drawn_together_and_fewer_when_memory_is_short(plan: AnalysisPlan, tmp_path: Path) -> None:
    painter = Painter()
    painter.most = 2
    analyze(plan, painter, tmp_path / "out", together=4)  # type: ignore[arg-type]
    assert {len(requests) for requests, _ in painter.drawn} == {2}


def test_another_file_weight_or_checkpoint_is_drawn_anew(plan: AnalysisPlan, file: Path) -> None:
    keys = {cell.key() for cell in plan.cells()}
    assert len(keys) == len(plan.cells())
    for other in (
        replace(plan, content="other"),
        replace(plan, weight=0.5),
        plan.on(replace(CHECKPOINT, sha256="cd")),
        plan.on(CHECKPOINT, "Clip skip: 2"),
    ):
        bare = {other.none(r).key() for r in other.requests}
        assert not keys & ({cell.key() for cell in other.cells()} - bare)


def test_sheets_csv_and_differences_are_written(plan: AnalysisPlan, tmp_path: Path) -> None:
    document = analyze(plan, Painter(), tmp_path / "out")  # type: ignore[arg-type]
    with Image.open(document["sheets"][0]) as sheet:
        assert sheet.width > 5 * LIKE.width
        assert sheet.height > 4 * 4 * LIKE.height
    *blocks, whole = csv.DictReader(Path(document["csv"]).read_text(encoding="utf-8").splitlines())
    for line, entry in zip(blocks, document["blocks"], strict=True):
        assert (line["block"], line["lbw_only"]) == (entry["block"], entry["lbw_only"])
        assert float(line["leak_without_share_sd"]) == pytest.approx(entry["leak"]["without"]["share_sd"], abs=1e-6)
    assert float(whole["only_rms"]) == pytest.approx(document["all"]["rms"], rel=1e-5)
    entry = document["blocks"][0]
    request = plan.requests[3]
    shown = np.asarray(Image.open(entry["pictures"][3]["difference"])).astype(float)
    full, without = (picture(request, LoraUse(plan.file, 1.0, lbw)).astype(float) for lbw in ("", entry["lbw_without"]))
    assert np.array_equal(shown, (np.abs(full - without) * document["gain"]).clip(0, 255))
    assert document["gain"] in (1, 2, 4, 8, 16)


def sentences(document: dict[str, Any]) -> list[str]:
    return [note["template"].format(**note["values"]) for note in document["notes"]]


def test_the_notes_name_the_strong_the_idle_and_the_polluting(plan: AnalysisPlan, tmp_path: Path) -> None:
    strong, idle, leak, worse = sentences(analyze(plan, Painter(), tmp_path / "out"))  # type: ignore[arg-type]
    assert strong == "Most of what the LoRA does comes from IN01."
    assert "with M00;" in idle
    assert "through TE1:" in leak
    assert "word TE1 change more" in worse


def test_a_block_that_is_useful_and_pollutes_is_said_to_do_both(
    plan: AnalysisPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRENGTH, "IN01", (60.0, 50.0))
    strong, _, leak, both = sentences(analyze(plan, Painter(), tmp_path / "out"))  # type: ignore[arg-type]
    assert strong == "Most of what the LoRA does comes from IN01."
    assert "through IN01" in leak
    assert both.startswith("Both come from IN01,")


def test_without_a_prompt_that_lacks_the_trigger_nothing_is_said_about_leaks(file: Path, tmp_path: Path) -> None:
    for prompts, trigger in ((["zorp"], "zorp"), (["a", "b"], "")):
        plan = plan_analysis(file, prompts, [1], LIKE, trigger=trigger).on(CHECKPOINT)
        document = analyze(plan, Painter(), tmp_path / trigger)  # type: ignore[arg-type]
        assert document["all_leak"] is None
        assert all(entry["leak"] is None for entry in document["blocks"])
        assert "Add a prompt without the trigger" in sentences(document)[-1]


def test_when_no_prompt_asks_all_count_as_asking(file: Path, tmp_path: Path) -> None:
    plan = plan_analysis(file, ["a"], [1], LIKE, trigger="zorp").on(CHECKPOINT)
    document = analyze(plan, Painter(), tmp_path)  # type: ignore[arg-type]
    assert document["all_leak"] is None
    assert document["blocks"][0]["block"] == "TE1"


def test_a_lora_without_effect_is_said_in_one_sentence(
    plan: AnalysisPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "STRENGTH", dict.fromkeys(STRENGTH, (0.0, 0.0)))
    (said,) = sentences(analyze(plan, Painter(), tmp_path))  # type: ignore[arg-type]
    assert "does not change these pictures" in said


def test_the_share_is_of_differences_above_twenty() -> None:
    first = np.zeros((1, 4, 3), dtype=np.uint8)
    second = first.copy()
    second[0, 0], second[0, 1], second[0, 2, 0] = 20, 21, 200
    assert changed_share(Image.fromarray(first), Image.fromarray(second)) == pytest.approx(4 / 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"seeds": []}, "at least one prompt and one seed"),
        ({"weight": 0.0}, "weight: use a number"),
        ({"weight": 2.5}, "weight: use a number"),
        ({"weight": float("nan")}, "weight: use a number"),
        ({"seeds": list(range(300))}, "would draw 3000 pictures"),
        ({"file": Path("gone.safetensors")}, "does not exist"),
    ],
)
def test_what_cannot_be_analysed_is_one_sentence(file: Path, change: dict[str, Any], said: str) -> None:
    values = {"file": file, "prompts": ["a"], "seeds": [1], "weight": 1.0, **change}
    with pytest.raises(InputError, match=said):
        plan_analysis(values["file"], values["prompts"], values["seeds"], LIKE, weight=values["weight"])


def test_a_file_that_is_gone_or_of_another_kind_is_one_sentence(plan: AnalysisPlan, tmp_path: Path) -> None:
    xl = replace(CHECKPOINT, family=SDXL)
    with pytest.raises(InputError, match="is a LoRA for SD1/SD2, but the checkpoint is SDXL"):
        plan.on(xl)
    plan.file.unlink()
    with pytest.raises(InputError, match="is gone"):
        analyze(plan, Painter(), tmp_path)  # type: ignore[arg-type]


def test_on_the_model_the_only_block_alone_is_the_whole_and_without_it_nothing(
    standalone: StandaloneHost, tmp_path: Path
) -> None:
    """With one block in the file, only it = all blocks, and all but it = no LoRA: to the byte."""
    with standalone.session(ModelRequest()) as session:
        weight = session.model.unet.mid_block.attentions[0].proj_in.weight
        path = tmp_path / "one.safetensors"
        save_file(tensors({KEYS[2]: lora(weight.shape[0], weight.shape[1], 2, 2.0, kernel=1)}), path)
        like = DrawRequest("", width=64, height=64, steps=1, sampler="Euler")
        plan = plan_analysis(path, ["zorp"], [1, 2], like).on(standalone.check(ModelRequest()))
        document = analyze(plan, session, tmp_path / "out")
    (entry,) = document["blocks"]
    assert entry["block"] == "M00"
    assert entry["only"] == entry["without"] == document["all"]
    assert document["all"]["rms"] > 0
    for request, shown in zip(document["requests"], entry["pictures"], strict=True):
        assert file_hash(Path(shown["only"])) != file_hash(Path(request["none"]))
        assert np.array_equal(np.asarray(Image.open(shown["only"])), np.asarray(Image.open(request["full"])))
        assert np.array_equal(np.asarray(Image.open(shown["without"])), np.asarray(Image.open(request["none"])))
    assert load_file(path)
