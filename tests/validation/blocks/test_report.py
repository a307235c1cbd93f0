"""The whole tuning: what the document says is what its list does, and what is recommended in which case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import InputError
from lora_trainer.hosts.base import Host, ModelRequest
from lora_trainer.model.block_lists import SD, SDXL
from lora_trainer.network.blocks.block_map import block_of
from lora_trainer.network.blocks.presets import Presets, load_presets, shipped_presets
from lora_trainer.network.blocks.weights import resolve
from lora_trainer.network.ops.files import Baking, bake_file
from lora_trainer.runs.run import Run
from lora_trainer.validation.blocks.report import preset_weights, recommended, tune, verdict
from lora_trainer.validation.blocks.tuner import Effort, Gain, Tuner
from lora_trainer.validation.metrics.evaluation_set import find_pictures
from tests.runs_helpers import make_jobs, run_to_end

EFFORT = Effort(steps=1, batch=1, levels=1, draws=1, rate=0.3, l1=0.0)
PRESETS = Presets({"ALL": {17: ",".join("1" * 17)}, "OUTS": {17: "1" + ",0" * 11 + ",1" * 5}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_to_end(
        tmp_path_factory.mktemp("tuning"), training__text_lr=1e-2, save__precision="fp32", validation__share=0.4
    )


@pytest.fixture(scope="module")
def host(run: Run) -> Host:
    return make_jobs(run.folder.parent.parent).host


@pytest.fixture(scope="module")
def file(run: Run) -> Path:
    return Path(run.manifest["files"][-1]["path"])


@pytest.fixture(scope="module")
def document(host: Host, run: Run, file: Path) -> dict[str, Any]:
    config = run.config()
    output = run.folder / "tuning.json"
    seen: list[tuple[int, int]] = []
    with host.session(ModelRequest.of(config)) as session:
        pictures = find_pictures(host, session, config)
        found = tune(
            session,
            file,
            pictures,
            weight=0.5,
            effort=EFFORT,
            presets=PRESETS,
            output=output,
            on_part=lambda done, of: seen.append((done, of)),
        )
    assert json.loads(output.read_text(encoding="utf-8")) == found
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({of for _, of in seen}) == 1
    assert seen[-1][0] == seen[-1][1]
    return found


def test_the_list_has_the_weights_and_they_were_rounded(document: dict[str, Any]) -> None:
    weights = resolve(document["lbw"], SD)
    listed = dict(zip(weights.blocks, weights.weights, strict=True))
    assert len(listed) == 17
    assert {block.replace("BASE", "TE1"): weight for block, weight in listed.items()} == document["weights"]
    assert any(weight != 1 for weight in document["weights"].values())
    assert document["prompt"] == f"<lora:zorp:0.5:lbw={document['lbw']}>"


def test_the_loss_that_is_told_is_that_of_the_baked_file(
    document: dict[str, Any], host: Host, run: Run, file: Path, tmp_path: Path
) -> None:
    """The list, baked into a file at the same weight and measured with all blocks at 1."""
    baked = bake_file(file, tmp_path / "baked.safetensors", Baking(0.5, 0.5, document["lbw"]), PRESETS).path
    config = run.config()
    losses = {}
    for name, path, weight in (("fitted", baked, 1.0), ("before", file, 0.5)):
        with host.session(ModelRequest.of(config)) as session:
            tuner = Tuner(session, path, find_pictures(host, session, config), weight=weight, effort=EFFORT)
            found = tuner.losses(tuner.ones, range(tuner.count))
            losses[name] = sum(found) / len(found)
    assert document["losses"]["fitted"] == pytest.approx(losses["fitted"], rel=1e-5)
    assert document["losses"]["before"] == pytest.approx(losses["before"], rel=1e-6)
    assert losses["fitted"] != pytest.approx(losses["before"], rel=1e-5)


def test_presets_and_single_weights_were_tried(document: dict[str, Any]) -> None:
    assert document["preset"]["tried"].keys() == {"ALL", "OUTS"}
    assert document["preset"]["tried"]["ALL"] == pytest.approx(document["losses"]["before"])
    single = document["single"]
    assert len(single["tried"]) == 11
    assert single["loss"] == min(single["tried"].values())
    assert single["prompt"] == f"<lora:zorp:{0.5 * float(single['name']):g}>"
    assert document["tuned"]["before"] == pytest.approx(document["losses"]["before"])


def test_a_weight_that_cannot_be_is_one_sentence(host: Host, run: Run, file: Path) -> None:
    with host.session(ModelRequest.of(run.config())) as session:
        pictures = find_pictures(host, session, run.config())
        for weight in (0.0, 3.0, float("nan")):
            with pytest.raises(InputError, match="weight: use a number"):
                tune(session, file, pictures, weight=weight)


# ------------------------------------------------------------------ presets
def test_a_burnt_file_is_one_sentence_and_leaves_no_document(host: Host, run: Run, file: Path, tmp_path: Path) -> None:
    burnt, output = tmp_path / "burnt.safetensors", tmp_path / "tuning.json"
    save_file({name: torch.full_like(t, torch.nan) for name, t in load_file(file).items()}, burnt)
    config = run.config()
    with host.session(ModelRequest.of(config)) as session:
        pictures = find_pictures(host, session, config)
        with pytest.raises(InputError, match=r"With burnt\.safetensors the loss is no number"):
            tune(session, burnt, pictures, effort=EFFORT, presets=PRESETS, output=output)
    assert not output.exists()


def test_presets_are_the_weights_of_the_files_blocks_once_each(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(
        "MINE:1,1,1,1,1,1,1,1,0.5,1,1,1,1,1,1,1,1\nSAME:1,1,1,1,1,1,1,1,0.5,1,1,1,1,1,1,1,0\n"
        "BAD:a,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\nLONG:1,1,1,1,1,1,1,1,1,1,1,1\n",
        encoding="utf-8",
    )
    found = preset_weights(load_presets(own), SD, ["TE1", "M00", "OUT03"])
    assert found["ALL"] == (1.0, 1.0, 1.0)
    assert found["MINE"] == (1.0, 1.0, 0.5)
    assert not {"SAME", "BAD", "LONG"} & found.keys()
    assert len(set(found.values())) == len(found)
    keys = {"TE1": "lora_te_text_model_encoder_layers_0_mlp_fc1", "M00": "lora_unet_mid_block_attentions_0_proj_in"}
    for name, weights in found.items():
        resolved = resolve(name, SD, load_presets(own))
        for block, key in keys.items():
            assert block_of(key) in ("BASE", block)
            assert weights[["TE1", "M00"].index(block)] == resolved.ratio(key)


def test_a_list_can_tell_the_text_encoders_apart() -> None:
    presets = Presets({"A": {12: "0.2/0.4" + ",1" * 11}})
    assert preset_weights(presets, SDXL, ["TE1", "TE2", "OUT08"])["A"] == (0.2, 0.4, 0.0)
    assert "NONE" in preset_weights(shipped_presets(), SDXL, ["TE2", "M00"])


# ------------------------------------------------------------------ what is said
def gain(*differences: float) -> Gain:
    return Gain(dict.fromkeys(range(len(differences)), 1.0), {n: 1.0 - d for n, d in enumerate(differences)})


NOTHING, SOME, MORE = gain(0.1, -0.1, 0.0, 0.01), gain(0.1, 0.11, 0.09, 0.1), gain(0.2, 0.22, 0.19, 0.2)


@pytest.mark.parametrize(
    ("single", "preset", "tuned", "wanted"),
    [
        (NOTHING, NOTHING, NOTHING, "none"),
        (NOTHING, NOTHING, SOME, "tuned"),
        (SOME, NOTHING, SOME, "single"),  # the simplest of equals
        (NOTHING, SOME, SOME, "preset"),
        (SOME, SOME, MORE, "tuned"),
        (SOME, MORE, SOME, "preset"),
        (MORE, SOME, SOME, "single"),
    ],
)
def test_the_simplest_that_nothing_beats_is_recommended(single: Gain, preset: Gain, tuned: Gain, wanted: str) -> None:
    assert recommended({"single": single, "preset": preset, "tuned": tuned}) == wanted


def said(document: Mapping[str, Any]) -> list[str]:
    return [str(notice) for notice in verdict(document)]


def test_the_sentences_say_what_to_do_and_how_sure_it_is() -> None:
    values = {"relative": 0.05, "error": 0.01, "before": 0.5}
    known: dict[str, Any] = {
        "weight": 0.8,
        "prompt": "<lora:a:0.8:lbw=1,0>",
        "pictures": {"kind": "held out", "count": 8},
        "single": {"name": "0.9"},
        "preset": {"name": "OUTS"},
        "tuned": {**values, "state": "helps"},
        "recommended": "tuned",
    }
    first, second = said(known)
    assert first == "Use the learned block weights: <lora:a:0.8:lbw=1,0>"
    assert second.startswith("Learned block weights help:")
    assert "5.00% ± 2.00%" in second
    assert "at the weight 0.72:" in said({**known, "recommended": "single"})[0]
    assert "preset OUTS" in said({**known, "recommended": "preset"})[0]
    assert "Leave the block weights alone" in said({**known, "recommended": "none"})[0]
    assert "may be chance" in said({**known, "tuned": {**values, "state": "maybe"}})[1]
    assert "do not help" in said({**known, "tuned": {**values, "state": "no"}})[1]
    assert "learned by heart" in said({**known, "pictures": {"kind": "training", "count": 8}})[2]
    assert "Only 3 pictures" in said({**known, "pictures": {"kind": "folder", "count": 3}})[2]
