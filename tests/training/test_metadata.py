from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_trainer.config.train import TrainConfig
from lora_trainer.dataset.plan import Plan
from lora_trainer.dataset.scan import Dataset
from lora_trainer.model.families import SD1, CheckpointInfo
from lora_trainer.training.metadata import Progress, sidecar, training_metadata
from lora_trainer.training.optimizers import KINDS
from tests.helpers import config, item

CHECKPOINT = CheckpointInfo("model.safetensors", "ab" * 32, "12345678", SD1, "epsilon", "my.vae.pt")
PROGRESS = Progress(epoch=3, step=21, started_at=1_700_000_000.5, finished_at=1_700_000_060.25)
ITEMS = [
    item("a.png", caption="sks_, 汉服, red", repeats=10, concept="10_girl"),
    item("b.png", caption="sks_, red", repeats=10, concept="10_girl"),
    item("c.png", (300, 600), caption="dress", repeats=2, concept="2_dress"),
]
ESSENTIALS = {
    *("ss_output_name", "ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_base_model_version"),
    *("ss_v2", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_sd_model_name"),
    *("ss_sd_model_hash", "ss_new_sd_model_hash", "ss_resolution", "ss_clip_skip", "ss_seed", "ss_steps", "ss_epoch"),
    *("ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_optimizer", "ss_lr_scheduler", "ss_tag_frequency"),
    *("ss_dataset_dirs", "ss_bucket_info", "ss_datasets"),
}


def made(
    settings: TrainConfig | None = None, checkpoint: CheckpointInfo = CHECKPOINT, clip_skip: int = 1
) -> dict[str, str]:
    settings = settings or config(data__trigger="sks_", name="汉服")
    dataset = Dataset(Path("pictures"), ITEMS)
    return training_metadata(settings, checkpoint, dataset, 2, Plan(ITEMS, settings), PROGRESS, "fp32", clip_skip)


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config(training__optimizer_args={"weight_decay": 0.1, "betas": [0.9, 0.99]}, network__targets="attention+conv"),
    ],
)
def test_every_entry_is_text_and_kohyas_essentials_are_there(settings: TrainConfig) -> None:
    header = made(settings)
    assert all(type(key) is str and type(value) is str for key, value in header.items())
    assert not ESSENTIALS - header.keys()
    assert all(key.startswith(("ss_", "modelspec.")) for key in header)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_output_name", "汉服"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "16"),
        ("ss_network_alpha", "8.0"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_v2", "False"),
        ("ss_sd_model_name", "model.safetensors"),
        ("ss_sd_model_hash", "12345678"),
        ("ss_new_sd_model_hash", "ab" * 32),
        ("ss_vae_name", "my.vae.pt"),
        ("ss_clip_skip", "None"),
        ("ss_resolution", "(512, 512)"),
        ("ss_seed", "42"),
        ("ss_steps", "21"),
        ("ss_epoch", "3"),
        ("ss_num_epochs", "10"),
        ("ss_max_train_steps", "220"),
        ("ss_num_batches_per_epoch", "22"),
        ("ss_num_train_images", "22"),
        ("ss_num_validation_images", "2"),
        ("ss_unet_lr", "0.0001"),
        ("ss_text_encoder_lr", "5e-06"),
        ("ss_optimizer", "AdamW(weight_decay=0.01)"),
        ("ss_lr_scheduler", "cosine"),
        ("ss_min_snr_gamma", "5.0"),
        ("ss_noise_offset", "None"),
        ("ss_mixed_precision", "no"),
        ("ss_training_started_at", "1700000000.5"),
        ("ss_training_finished_at", "1700000060.25"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.title", "汉服"),
        ("modelspec.resolution", "512x512"),
        ("modelspec.date", "2023-11-14T22:14:20"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.trigger_phrase", "sks_"),
        ("modelspec.sai_model_spec", "1.0.1"),
    ],
)
def test_entry(key: str, value: str) -> None:
    assert made()[key] == value


def test_values_of_json_entries() -> None:
    header = made()
    assert json.loads(header["ss_tag_frequency"]) == {
        "10_girl": {"sks_": 2, "red": 2, "汉服": 1},
        "2_dress": {"dress": 1},
    }
    assert json.loads(header["ss_dataset_dirs"]) == {
        "10_girl": {"n_repeats": 10, "img_count": 2},
        "2_dress": {"n_repeats": 2, "img_count": 1},
    }
    buckets = json.loads(header["ss_bucket_info"])
    assert buckets["buckets"] == {
        "0": {"resolution": [512, 512], "count": 20},
        "1": {"resolution": [320, 704], "count": 2},
    }
    assert buckets["mean_img_ar_error"] == pytest.approx(abs(1 / 2 - 320 / 704) / 3)
    (dataset,) = json.loads(header["ss_datasets"])
    assert [subset["image_dir"] for subset in dataset["subsets"]] == ["10_girl", "2_dress"]
    assert json.loads(header["ss_network_args"]) == {}
    assert json.loads(header["ss_reg_dataset_dirs"]) == {}
    assert "汉服" in header["ss_tag_frequency"]


def test_convolutions_are_told_as_kohya_does() -> None:
    header = made(config(network__targets="attention+conv", network__conv_rank=4, network__conv_alpha=0))
    assert json.loads(header["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "4"}


def test_alpha_of_zero_is_told_as_the_rank() -> None:
    assert made(config(network__rank=8, network__alpha=0))["ss_network_alpha"] == "8.0"


def test_optimizer_arguments_are_told() -> None:
    header = made(config(training__optimizer_args={"weight_decay": 0.1, "amsgrad": True}))
    assert header["ss_optimizer"] == "AdamW(weight_decay=0.1,amsgrad=True)"


@pytest.mark.parametrize("name", list(KINDS))
def test_arguments_that_nobody_gave_are_told_as_the_optimizer_gets_them(name: str) -> None:
    """A person who trains it again elsewhere must know them; only what is given differs from the class's own."""
    told = made(config(training__optimizer=name, training__text_lr=0, training__optimizer_args={"eps": 1e-6}))[
        "ss_optimizer"
    ]
    wanted = {**KINDS[name].defaults, "eps": 1e-6}
    assert told == f"{name}({','.join(f'{key}={value}' for key, value in wanted.items())})"


def test_what_is_off_or_unknown_is_none_or_left_out() -> None:
    header = made(config(training__text_lr=0), CheckpointInfo("m", "", "", SD1, "v_prediction"))
    assert header["ss_text_encoder_lr"] == "None"
    assert header["modelspec.prediction_type"] == "v"
    assert not {"ss_new_sd_model_hash", "ss_sd_model_hash", "ss_vae_name", "modelspec.trigger_phrase"} & header.keys()


@pytest.mark.parametrize(("clip_skip", "told"), [(1, None), (2, "2")])
def test_clip_skip_is_told_when_it_skips(clip_skip: int, told: str | None) -> None:
    header = made(clip_skip=clip_skip)
    assert header["ss_clip_skip"] == str(told)
    assert header.get("modelspec.encoder_layer") == told


@pytest.mark.parametrize(
    ("trigger", "captions", "activation"), [("sks_", ["a"], "sks_"), (" ", ["a, b", "b"], "b"), ("", [""], "")]
)
def test_card_says_what_to_type(trigger: str, captions: list[str], activation: str) -> None:
    dataset = Dataset(Path("p"), [item(f"{n}.png", caption=text) for n, text in enumerate(captions)])
    card = sidecar(config(data__trigger=trigger), dataset, CHECKPOINT)
    assert (card["activation text"], card["sd version"]) == (activation, "SD1")
    assert "model.safetensors" in card["description"]
    json.dumps(card)


@pytest.mark.parametrize(("scheduler", "steps"), [("constant", "0"), ("constant_with_warmup", "5"), ("cosine", "5")])
def test_a_warmup_that_the_schedule_lacks_is_not_claimed(scheduler: str, steps: str) -> None:
    settings = config(training__scheduler=scheduler, training__warmup=5, training__steps=50)
    assert made(settings)["ss_lr_warmup_steps"] == steps
