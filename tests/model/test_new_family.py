"""A model family is one record and one line of registration: everything else reads it from there.

Everything is held against plain torch in float64 that knows nothing of the package's own steps.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_unet_diffusers_config_from_ldm
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.plan import Plan, held_out
from lora_trainer.dataset.scan import Item, scan
from lora_trainer.dataset.step_captions import Captions
from lora_trainer.diffusion.conditioning import frozen_conditioning
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.diffusion.noise import keyed_noise
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.hosts.standalone.tokenizer import load_tokenizer
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.clip import name_in_files
from lora_trainer.model.families import FAMILIES, SD1, CheckpointInfo, family_of, register
from lora_trainer.model.ldm_names import unet_to_ldm
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.text import TextEncoder, TextEncoders
from lora_trainer.network.lora_file import read_lora, read_metadata, require_family
from lora_trainer.runs.run import Run
from lora_trainer.training.trainer import Trainer
from lora_trainer.validation.metrics.held_out_loss import held_out_losses
from tests.helpers import CHECKPOINT, LIMIT, draw_pictures
from tests.model.toy_family import TOY
from tests.network.plain import key_of, randomise

WIDTHS = (64, 32)
"""Of the text encoders' states."""


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register(TOY)
    yield
    FAMILIES.remove(TOY)


# ------------------------------------------------------------------ a checkpoint of the family
def _clip(width: int, layers: int) -> CLIPTextModel:
    numbers = json.loads((CHECKPOINT.parent / "clip" / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "projection_dim": width}
    return CLIPTextModel(CLIPTextConfig(**{**numbers, **sizes}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights below LDM's names, the small checkpoint's VAE and tokenizer, and a yaml."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(CHECKPOINT.parent / "clip", folder / "clip")
    (folder / "clip" / "second").mkdir()
    config: dict[str, Any] = yaml.safe_load(CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8"))
    config["model"]["params"] |= {"image_size": 8, "scale_factor": TOY.latent.scale}
    # two channels a group of the normalisations: of one, they would take all out that the time embedding adds
    widths = {"model_channels": 64, "channel_mult": [1, 1, 2, 2], "context_dim": sum(WIDTHS)}
    config["model"]["params"]["unet_config"]["params"] |= widths
    (folder / "toy.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        ldm = copy.deepcopy(config)
        unet = UNet2DConditionModel(**create_unet_diffusers_config_from_ldm(ldm, {}))
        encoders = [_clip(width, layers) for width, layers in zip(WIDTHS, (2, 3), strict=True)]
    tensors = {n: t for n, t in load_file(CHECKPOINT).items() if n.startswith("first_stage_model.")}
    tensors |= {TOY.unet.stored + unet_to_ldm(name): value for name, value in unet.state_dict().items()}
    for part, encoder, place in zip(TOY.encoders, encoders, ("", "second"), strict=True):
        encoder.config.save_pretrained(folder / "clip" / place)
        tensors |= {part.stored + name_in_files(name): value for name, value in encoder.named_parameters()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "toy.safetensors")
    return folder / "toy.safetensors"


@pytest.fixture(scope="module")
def host(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    return StandaloneHost(tmp_path_factory.mktemp("host"), str(checkpoint))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("data")
    draw_pictures(folder, count=6, size=(64, 64))
    return TrainConfig.from_dict({
        "name": "toy",
        "data": {"folder": str(folder), "resolution": 64, "bucket_step": 32, "trigger": "zorp"},
        "network": {"rank": 2, "alpha": 1, "targets": "attention+conv", "conv_rank": 1},
        "training": {"steps": 4, "batch_size": 2, "unet_lr": 1e-3, "text_lr": 5e-4, "min_snr_gamma": 5, "seed": 3},
        "validation": {"share": 0.34, "timesteps": 3},
        "samples": {"steps": 2, "every_steps": 4, "prompts": ["zorp"]},
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(host: StandaloneHost, config: TrainConfig) -> Run:
    """A whole run: pictures, latents, steps, validation, a sample and the file."""
    jobs = Jobs(host)
    made = jobs.submit(config)
    assert jobs.wait(made, LIMIT)
    assert made.state == "done", made.manifest.get("message")
    return made


@pytest.fixture
def model(host: StandaloneHost, config: TrainConfig) -> Iterator[LoadedModel]:
    with host.session(ModelRequest.of(config)) as session:
        yield session.model


# ------------------------------------------------------------------ it is known
def test_it_is_told_from_others_by_its_mark(checkpoint: Path) -> None:
    names = list(load_file(checkpoint))
    assert family_of(names, 4, name="a") is TOY
    assert family_of(list(load_file(CHECKPOINT)), 4, name="a") is SD1


def test_a_checkpoint_without_its_second_encoder_is_refused() -> None:
    names = ["second_stage.transformer.text_model.x", "model.diffusion_model.x"]
    with pytest.raises(InputError, match="has no CLIP text encoder in it"):
        family_of(names, 4, name="a")


def test_its_parts_are_the_records(model: LoadedModel) -> None:
    assert model.info.family is TOY
    assert list(model.parts) == ["lora_unet_", "lora_te1_", "lora_te2_"]
    assert list(model.parts.values()) == [model.unet, *(encoder.model for encoder in model.text)]


# ------------------------------------------------------------------ plain arithmetic, float64
class Plain:
    """The model without the package: its modules with α/rank · up · down added to their weights.

    Args:
        model: a view without adapters.
        tensors: of a LoRA file; those in float64 that ask for a gradient get one.
    """

    def __init__(self, model: LoadedModel, tensors: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._parts = {prefix: copy.deepcopy(part).double().eval() for prefix, part in model.parts.items()}
        self._weights = {prefix: self._added(prefix, part, tensors) for prefix, part in self._parts.items()}

    @staticmethod
    def _added(prefix: str, part: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, module in part.named_modules():
            key = key_of(prefix, name)
            if f"{key}.lora_up.weight" in tensors:
                down, up = (tensors[f"{key}.lora_{side}.weight"].double() for side in ("down", "up"))
                change = float(tensors[f"{key}.alpha"].detach()) / len(down) * up.flatten(1) @ down.flatten(1)
                found[f"{name}.weight"] = module.weight + change.view_as(module.weight)
        return found

    def _call(self, prefix: str, *arguments: torch.Tensor) -> Any:
        return functional_call(self._parts[prefix], self._weights[prefix], arguments)

    def loss(self, latent: torch.Tensor, caption: str, noise: torch.Tensor, t: int) -> torch.Tensor:
        """Mean of (ε − ε_θ(√ᾱ x + √(1−ᾱ) ε, t, [E₁(caption), E₂(caption)]))²."""
        words = self._model.text[0].tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt")
        ids = words.input_ids
        states = [self._call(prefix, ids).last_hidden_state for prefix in ("lora_te1_", "lora_te2_")]
        alpha = self.alpha(t)
        noisy = math.sqrt(alpha) * latent.double() + math.sqrt(1 - alpha) * noise.double()
        said = self._call("lora_unet_", noisy[None], torch.tensor([t]), torch.cat(states, dim=-1)).sample[0]
        return (said - noise.double()).square().mean()

    def alpha(self, t: int) -> float:
        """ᾱ_t."""
        return float(self._model.alphas_cumprod[t])


# ------------------------------------------------------------------ it is trained
def test_a_run_writes_a_file_with_its_names_and_metadata(run: Run, model: LoadedModel) -> None:
    path = Path(run.manifest["files"][-1]["path"])
    tensors, metadata = read_lora(path), read_metadata(path)
    layers = {name.partition(".")[0] for name in tensors}
    counted = {prefix: sum(layer.startswith(prefix) for layer in layers) for prefix in model.parts}
    # SD1's UNet has 282; here two levels keep the width of the one before, and five resnets need no shortcut
    assert counted == {"lora_unet_": 277, "lora_te1_": 2 * 6, "lora_te2_": 3 * 6}
    assert sum(counted.values()) == len(layers)
    assert (metadata["ss_base_model_version"], metadata["modelspec.architecture"]) == ("toy_v1", "toy-v1/lora")
    assert all(tensors[f"{layer}.lora_up.weight"].abs().max() > 0 for layer in layers)
    require_family(path, TOY)
    with pytest.raises(InputError, match="another kind of checkpoint"):
        require_family(path, SD1)


def test_each_part_has_its_own_learning_rate(run: Run) -> None:
    assert run.manifest["checkpoint"]["family"] == "Toy"
    rates = [entry["lr"] for entry in run.entries() if "lr" in entry]
    assert rates
    assert all(list(each) == ["unet", "text", "text_2"] for each in rates)
    assert rates[0]["text"] == rates[0]["text_2"] == pytest.approx(rates[0]["unet"] / 2)


@torch.no_grad()
def test_its_file_loaded_again_gives_the_losses_of_plain_arithmetic(
    host: StandaloneHost, config: TrainConfig, run: Run
) -> None:
    path = Path(run.manifest["files"][-1]["path"])
    with host.session(ModelRequest.of(config)) as session:
        found = held_out_losses(host, session, config, [path], [1.0])
        model = session.model
    _, kept = held_out(scan(config.data).items, config.validation.share, config.training.seed)
    assert found.held_out
    assert [entry.file for entry in found.entries] == [None, str(path)]
    for entry, tensors in zip(found.entries, ({}, load_file(path)), strict=True):
        plain = Plain(model, tensors)
        wanted = [fmean(_losses(plain, model, index, item)) for index, item in enumerate(kept)]
        assert entry.losses == pytest.approx(wanted, rel=1e-4)


def _losses(plain: Plain, model: LoadedModel, index: int, item: Item) -> list[float]:
    """Of a picture at the middles of three strata of noise levels."""
    pixels = np.asarray(Image.open(item.path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    latent = model.encode(torch.from_numpy(pixels)[None])[0]
    noises = {t: keyed_noise(latent.shape, 0.0, "validation", index, t) for t in (166, 500, 833)}
    return [float(plain.loss(latent, item.caption, noise, t)) for t, noise in noises.items()]


def test_the_gradient_of_a_step_is_that_of_plain_arithmetic(
    host: StandaloneHost, config: TrainConfig, model: LoadedModel
) -> None:
    """Of the mean loss with min-SNR weights, in the adapters of all three parts."""
    items = scan(config.data).items
    rng = torch.Generator().manual_seed(1)
    latents = {(item.path, False): torch.randn(4, 8, 8, generator=rng) for item in items}
    plan = Plan(items, config)
    captions = Captions(items, config.data, config.training.seed, None)
    trainer = Trainer(config, model, items, plan, latents, captions, model.text, "fp32")
    tensors = {name: tensor.double().requires_grad_() for name, tensor in randomise(trainer.adapters, 0.02).items()}
    kept: list[dict[str, torch.Tensor]] = []
    trainer._apply = lambda: kept.append(_gradients(trainer))  # type: ignore[method-assign]
    step = plan.step(1)
    loss = float(trainer.step(step))

    with host.session(ModelRequest.of(config)) as session:
        plain = Plain(session.model, tensors)
    wanted = torch.zeros((), dtype=torch.float64)
    seed = config.training.seed
    for number, (use, caption) in enumerate(zip(step.batches[0], captions.of_step(step)[0], strict=True)):
        t = python_rng(seed, "timestep", 1, number).randrange(1000)
        snr = plain.alpha(t) / (1 - plain.alpha(t))
        latent = latents[items[use.item].path, False]
        noise = keyed_noise(latent.shape, 0.0, seed, "noise", 1, number)
        wanted = wanted + min(snr, 5) / snr * plain.loss(latent, caption, noise, t) / len(step.batches[0])
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    wanted.backward()
    for prefix in model.parts:
        names = [name for name in kept[0] if name.startswith(prefix)]
        found = torch.cat([kept[0][name].flatten() for name in names]).double()
        right = torch.cat([tensors[name].grad.flatten() for name in names])  # type: ignore[union-attr]
        assert float((found - right).norm() / right.norm()) < 2e-5


def _gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """By the adapters' names in files."""
    sides = ("lora_down", "lora_up")
    names = [f"{key}.{side}.weight" for key in trainer.adapters.layers for side in sides]
    gradients = [p.grad for p in trainer.adapters.parameters()]
    return {name: grad.clone() for name, grad in zip(names, gradients, strict=True) if grad is not None}


# ------------------------------------------------------------------ pooled captions and sizes
@torch.no_grad()
def test_pooled_captions_and_sizes_reach_the_unet() -> None:
    """A UNet that is told of them (diffusers' ``text_time``), held against the same one called by hand."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=sum(WIDTHS),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 8,
        ).eval()
        first = _clip(WIDTHS[0], 2).eval()
        second = CLIPTextModelWithProjection(_clip(WIDTHS[1], 2).config).eval()
    tokenizer = load_tokenizer(CHECKPOINT.parent / "clip")
    family = replace(TOY, time_ids=lambda height, width: (height, width, 0, 0, height, width))
    model = LoadedModel(
        info=CheckpointInfo("toy", "", "", family, "epsilon"),
        unet=unet,
        text=TextEncoders([TextEncoder(first, tokenizer), TextEncoder(second, tokenizer)]),
        alphas_cumprod=torch.linspace(0.999, 0.01, 1000),
        encode=lambda pixels: pixels,
        vae_key="",
        device=torch.device("cpu"),
        clip_skip=1,
    )
    rng = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, 4, 8, 16, generator=rng), torch.randn(2, 4, 8, 16, generator=rng)
    t, captions = torch.tensor([100, 800]), ["red circle", "blue, " * 60]
    ids = torch.stack([torch.tensor(model.text[0].chunks(caption)[0]) for caption in captions])
    told = {"text_embeds": second(ids).text_embeds, "time_ids": torch.tensor([[64.0, 128, 0, 0, 64, 128]] * 2)}
    alpha = model.alphas_cumprod[t].view(-1, 1, 1, 1)
    states = model.text(captions).states
    assert states.shape == (2, 2 * 77, sum(WIDTHS))
    said = unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, states, added_cond_kwargs=told).sample
    wanted = (said - noise).square().mean(dim=(1, 2, 3))
    for encode in (model.text, frozen_conditioning(model.text, model.device, "fp32")):
        found = Denoiser(model, encode, "fp32").losses(latents, noise, t, captions)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    swapped = unet(
        alpha.sqrt() * latents + (1 - alpha).sqrt() * noise,
        t,
        states,
        added_cond_kwargs={**told, "text_embeds": told["text_embeds"].flip(0)},
    ).sample
    assert float((swapped - said).norm() / said.norm()) > 1e-3
