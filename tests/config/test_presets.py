from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config import presets
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from lora_trainer.training.advice import advise
from tests.helpers import config

SHIPPED = ["character", "style", "product"]
PERSONAL = {
    "checkpoint": "my.safetensors",
    "data.folder": "/my/pictures",
    "data.trigger": "my_word",
    "network.continue_from": "my.safetensors",
    "save.folder": "my_folder",
    "samples.prompts": ["my prompt"],
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_preset_is_a_sound_configuration(name: str, tmp_path: Path) -> None:
    values = presets.load(name, tmp_path)
    made = TrainConfig(name="a").with_values({**values, "data.trigger": "sks_"})
    assert values
    assert not advise(made)
    assert not values.keys() & PERSONAL.keys()


def test_shipped_presets_are_all_listed_and_differ(tmp_path: Path) -> None:
    assert sorted(p.stem for p in presets.SHIPPED.glob("*.toml")) == sorted(SHIPPED)
    assert presets.names(tmp_path / "missing") == SHIPPED
    assert len({str(presets.load(name, tmp_path)) for name in SHIPPED}) == len(SHIPPED)


def test_saved_preset_has_everything_but_what_is_personal(tmp_path: Path) -> None:
    mine = config(network__rank=7, training__optimizer_args={"weight_decay": 0.1}).with_values(PERSONAL)
    presets.save("mine", mine, tmp_path)
    values = presets.load("mine", tmp_path)
    assert values.keys() == {o.path for o in options()} - PERSONAL.keys() - {"name"}
    assert TrainConfig(name="b").with_values(values).network.rank == 7
    assert "my" not in (tmp_path / "mine.toml").read_text(encoding="utf-8").replace("my_", "")


def test_own_presets_come_after_the_shipped_ones(tmp_path: Path) -> None:
    for name in ("zebra", "汉服", "v1.5"):
        presets.save(name, config(), tmp_path)
    assert presets.names(tmp_path) == [*SHIPPED, "v1.5", "zebra", "汉服"]


def test_older_preset_of_the_name_is_kept_aside(tmp_path: Path) -> None:
    for rank in (4, 8):
        presets.save("v1.5", config(network__rank=rank), tmp_path)
    assert presets.load("v1.5", tmp_path)["network.rank"] == 8
    assert "rank = 4" in (tmp_path / "v1.5.toml.bak").read_text(encoding="utf-8")
    assert presets.names(tmp_path) == [*SHIPPED, "v1.5"]


def test_own_preset_may_give_only_a_few_fields(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text('name = "ignored"\n[network]\nrank = 4\n', encoding="utf-8")
    assert presets.load("few", tmp_path) == {"network.rank": 4}


@pytest.mark.parametrize("name", ["", "..", "../evil", "a/b", "CON", "x" * 300, "nothing"])
def test_unknown_preset_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no preset named"):
        presets.load(name, tmp_path / "own")


@pytest.mark.parametrize("name", ["", "..", "../evil", "a/b", "CON", "x" * 300, *SHIPPED])
def test_preset_that_cannot_be_saved_under_its_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^preset: "):
        presets.save(name, config(), tmp_path / "own")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[network]\nrnak = 4\n", "[network]\nrank = 0\n", "[network\n", "network = 4\n"])
def test_wrong_preset_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError):
        presets.load("wrong", tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_preset_holds_pictures_out(name: str, tmp_path: Path) -> None:
    assert presets.load(name, tmp_path)["validation.share"] == 0.1


# ------------------------------------------------------------------ given away and taken
def test_what_is_given_away_can_be_taken(tmp_path: Path) -> None:
    mine = config(network__rank=7, training__optimizer_args={"weight_decay": 0.1}).with_values(PERSONAL)
    (tmp_path / "汉服.toml").write_text(presets.to_toml(mine), encoding="utf-8")
    name = presets.add(tmp_path / "汉服.toml", tmp_path / "own")
    assert name == "汉服"
    values = presets.load(name, tmp_path / "own")
    assert TrainConfig(name="b").with_values(values).network == config(network__rank=7).network
    assert not values.keys() & PERSONAL.keys()


def test_a_runs_own_settings_are_taken_without_what_belongs_to_its_pictures(tmp_path: Path) -> None:
    run = config(network__rank=5).with_values(PERSONAL)
    (tmp_path / "config.toml").write_text(run.to_toml(), encoding="utf-8")
    values = presets.load(presets.add(tmp_path / "config.toml", tmp_path / "own"), tmp_path / "own")
    assert values["network.rank"] == 5
    assert not values.keys() & PERSONAL.keys()


def test_a_few_fields_stay_a_few(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text("[network]\nrank = 4\n[data]\nfolder = '/x'\n", encoding="utf-8")
    assert presets.load(presets.add(tmp_path / "few.toml", tmp_path / "own"), tmp_path / "own") == {"network.rank": 4}


def test_no_preset_is_replaced_by_one_that_is_taken(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for rank, stem in enumerate(("style", "style", "Mine", "mine", "CON", ".."), start=1):
        folder = tmp_path / str(rank)
        folder.mkdir()
        path = folder / f"{stem}.toml"
        path.write_text(f"[network]\nrank = {rank}\n", encoding="utf-8")
        presets.add(path, own)
    assert presets.names(own) == [*SHIPPED, "Mine", "mine-2", "preset", "preset-2", "style-2", "style-3"]
    assert presets.load("style", own)["network.rank"] == 32
    assert presets.load("style-3", own) == {"network.rank": 2}


@pytest.mark.parametrize(
    "content",
    [
        *[b"", b"name = 'a'", b"[data]\nfolder = '/x'", b"[network\n", b"[network]\nrnak = 4", b"\xff\xfe"],
        b"#" * (1 << 20) + b"\n",
    ],
)
def test_what_is_no_file_of_settings_is_a_sentence_and_not_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(InputError):
        presets.add(tmp_path / "a.toml", tmp_path / "own")
    with pytest.raises(InputError):
        presets.add(tmp_path / "gone.toml", tmp_path / "own")
    assert presets.names(tmp_path / "own") == SHIPPED
