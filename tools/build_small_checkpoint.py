"""Train the small SD1-shaped checkpoint that serves the demo and the tests.

Everything in it is learned from the drawings of ``lora_trainer.demo.drawings``: a VAE, a CLIP text
encoder with a vocabulary of its own, and a UNet with the 192 LoRA modules of SD1. Seeded; about two
hours on two CPU cores. Run from the repository's root::

    python tools/build_small_checkpoint.py OUTPUT_FOLDER
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lora_trainer.demo import drawings
from lora_trainer.model.clip import byte_letters, name_in_files, tower, write_tokenizer
from lora_trainer.model.ldm_names import unet_to_ldm, vae_to_ldm

SCALE = 0.18215  # SD1's factor between VAE output and UNet input
LATENT_NOISE = 0.05  # deviation of the noise on the latents while the VAE is trained
SIZES = [(128, 128)] * 4 + [(128, 192), (192, 128)]
TEXT_WIDTH = 64
UNET = {"model_channels": 32, "channel_mult": [1, 2, 2, 3], "num_heads": 4}
VAE = {"ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1}


# ------------------------------------------------------------------ pictures and captions
def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def collage(rng: random.Random) -> Image.Image:
    """A busier picture than the UNet sees, so that the VAE can show details of any drawing."""
    image = drawings.draw(drawings.known_scene(rng), 128, 128, rng)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 12)):
        pen_of = drawings.SHAPES[rng.choice(list(drawings.SHAPES))]
        colour = drawings.COLOURS[rng.choice(list(drawings.COLOURS))]
        pen_of(pen, rng.uniform(0, 128), rng.uniform(0, 128), rng.uniform(3, 30), colour)
    for _ in range(rng.randint(0, 4)):
        x, y = rng.uniform(0, 118), rng.uniform(0, 118)
        box = (x, y, x + rng.uniform(24, 50), y + rng.uniform(24, 50))
        pen.rounded_rectangle(box, radius=rng.uniform(0, 8), fill=drawings.COLOURS[rng.choice(list(drawings.COLOURS))])
    return image


def caption(scene: drawings.Scene, rng: random.Random) -> str:
    """Tags or a sentence, sometimes with words that mean nothing, so that unknown words do no harm."""
    if rng.random() < 0.35:
        return scene.sentence()
    tags = scene.tags()
    if rng.random() < 0.3:
        rng.shuffle(tags)
    if rng.random() < 0.15:
        tags.pop(rng.randrange(len(tags)))
    if rng.random() < 0.35:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randint(2, 9)))
        tags.insert(rng.randint(0, len(tags)), word)
    return ", ".join(tags)


# ------------------------------------------------------------------ tokenizer
def build_vocabulary(folder: Path) -> CLIPTokenizer:
    """A byte-level CLIP vocabulary whose merges are the words of the captions (Sennrich et al., 2016)."""
    words = Counter(w for text in _caption_words() for w in text.split())
    splits = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(p for s in splits.values() for p in itertools.pairwise(s))
        if not pairs:
            break
        pair = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(pair)
        for word, symbols in splits.items():
            splits[word] = _merge(symbols, pair)
    letters = byte_letters()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    # the end token has the highest number, as CLIP expects
    write_tokenizer(folder, [*tokens, "<|startoftext|>", "<|endoftext|>"], [" ".join(m) for m in merges])
    return CLIPTokenizer.from_pretrained(folder)


def _caption_words() -> list[str]:
    plain = ["background", "a", "on", "picture", "of", *drawings.COLOURS, *drawings.SHAPES]
    return [*plain, *(p for p in drawings.PLACES if p), *(s for s in drawings.SIZES if s)]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append("".join(pair))
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


# ------------------------------------------------------------------ models
def new_models(vocabulary: int, folder: Path) -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    vae_widths = tuple(VAE["ch"] * m for m in VAE["ch_mult"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=vae_widths,
        layers_per_block=VAE["num_res_blocks"],
        latent_channels=4,
    )
    text_config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=12,
        num_attention_heads=4,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    text = CLIPTextModel(text_config)
    text_config.architectures = ["CLIPTextModel"]
    text_config.save_pretrained(folder)
    torch.nn.init.constant_(tower(text).final_layer_norm.bias, 0.1)  # see HOST-A1111: mean 0 gives NaN
    widths = tuple(UNET["model_channels"] * m for m in UNET["channel_mult"])
    unet = UNet2DConditionModel(
        block_out_channels=widths, cross_attention_dim=TEXT_WIDTH, attention_head_dim=UNET["num_heads"]
    )
    return vae, text, unet


def train_vae(vae: AutoencoderKL, steps: int, rng: random.Random) -> None:
    """Mostly on quarter crops, which cost a quarter; the last fifth on whole pictures."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, weight_decay=0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.05)
    with torch.no_grad():
        vae.quant_conv.weight.mul_(4)  # a strong signal from the start, or the decoder learns to do without
    pool = to_tensor([collage(rng) for _ in range(4000)])
    start = time.time()
    for step in range(steps):
        whole = step >= 0.8 * steps
        images = pool[rng.sample(range(len(pool)), 4 if whole else 10)]
        if not whole:
            x, y = rng.randrange(64), rng.randrange(64)
            images = images[:, :, y : y + 64, x : x + 64].contiguous()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean.float()
            output = vae.decode(mean + LATENT_NOISE * torch.randn_like(mean)).sample
        output = output.float()
        edges = sum(F.l1_loss(output.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
        size = mean.square().mean()
        loss = F.l1_loss(output, images) + F.mse_loss(output, images) + 1e-4 * size
        loss = loss + min(1.0, step / 1000) * edges  # from the start it would favour a flat picture
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"vae {step}/{steps} loss {loss:.4f} latent {size:.3f} {time.time() - start:.0f}s", flush=True)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, rng: random.Random) -> None:
    """Scale the VAE's own last and first 1×1 convolutions so that SD1's factor gives latents of deviation 1."""
    images = to_tensor([drawings.draw(drawings.known_scene(rng), rng=rng) for _ in range(256)])
    mean = torch.cat([vae.encode(b).latent_dist.mean for b in images.split(32)])
    offset = mean.mean(dim=(0, 2, 3))
    factor = 1 / (SCALE * (mean - offset.view(1, 4, 1, 1)).std(dim=(0, 2, 3)))
    vae.quant_conv.weight[:4] *= factor.view(4, 1, 1, 1)
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - offset) * factor
    vae.quant_conv.weight[4:] = 0  # a posterior as narrow as the noise that the decoder was trained with
    vae.quant_conv.bias[4:] = 2 * (LATENT_NOISE * factor).log()
    weight = vae.post_quant_conv.weight.clone()
    vae.post_quant_conv.bias += (weight[:, :, 0, 0] @ offset.view(4, 1)).view(-1)
    vae.post_quant_conv.weight.copy_(weight / factor.view(1, 4, 1, 1))


@torch.no_grad()
def latent_pool(vae: AutoencoderKL, count: int, rng: random.Random) -> list[tuple[drawings.Scene, torch.Tensor]]:
    pool: list[tuple[drawings.Scene, torch.Tensor]] = []
    for size in SIZES:
        for _ in range(count // len(SIZES) // 32):
            scenes = [drawings.known_scene(rng) for _ in range(32)]
            images = to_tensor([drawings.draw(s, *size, rng=rng) for s in scenes])
            latents = vae.encode(images).latent_dist.mean * SCALE
            pool += [(s, x.clone()) for s, x in zip(scenes, latents, strict=True)]
    return pool


def pyramid_noise(like: torch.Tensor, strength: float) -> torch.Tensor:
    """Gaussian noise with random colours over large areas: (B, C, H, W).

    The mean colour of a small latent shines through plain noise even at the last timestep, so that a model learns to
    read it there and not in the prompt, and at sampling time takes it from the seed. Noise that hides it teaches the
    prompt's colours (Whitaker 2023, multi-resolution noise).
    """
    noise = torch.randn_like(like)
    for size in (1, 2, 4):
        areas = torch.randn(*like.shape[:2], size, size)
        noise += strength * F.interpolate(areas, like.shape[-2:], mode="bilinear")
    return noise


def train_diffusion(
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: CLIPTokenizer,
    pool: list[tuple[drawings.Scene, torch.Tensor]],
    steps: int,
    rng: random.Random,
    *,
    rate: float,
    colours: float = 0.0,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Returns the running means of text encoder and UNet."""
    noise_schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    groups: dict[tuple[int, ...], list[tuple[drawings.Scene, torch.Tensor]]] = {}
    for item in pool:
        groups.setdefault(tuple(item[1].shape), []).append(item)
    shapes, weights = list(groups), [len(g) for g in groups.values()]
    unet.set_attn_processor(AttnProcessor())  # on a CPU, SDPA's backward is slow for heads this narrow
    parameters = [*text.parameters(), *unet.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.03)
    mean_models = copy.deepcopy((text, unet))
    start, losses = time.time(), []
    for step in range(steps):
        batch = rng.sample(groups[rng.choices(shapes, weights)[0]], 16)
        captions = ["" if rng.random() < 0.1 else caption(scene, rng) for scene, _ in batch]
        latents = torch.stack([x for _, x in batch])
        ids = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        noise = pyramid_noise(latents, colours)
        u = torch.rand(len(batch))
        t = (1000 * (u.sqrt() if colours else u)).long()  # colours are decided where the noise is strong
        noisy = noise_schedule.add_noise(latents, noise, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = text(ids).last_hidden_state
            output = unet(noisy, t, states).sample
        loss = F.mse_loss(output.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, live in zip(mean_models, (text, unet), strict=True):
                for a, b in zip(mean.parameters(), live.parameters(), strict=True):
                    a.lerp_(b, 1 - decay)
        losses.append(loss.item())
        if step % 200 == 0:
            print(
                f"unet {step}/{steps} loss {np.mean(losses[-200:]):.4f} {time.time() - start:.0f}s",
                flush=True,
            )
    return mean_models


# ------------------------------------------------------------------ the file
def ldm_state_dict(vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for key, value in unet.state_dict().items():
        tensors["model.diffusion_model." + unet_to_ldm(key)] = value.half()
    for key, value in vae.state_dict().items():
        name = vae_to_ldm(key, len(VAE["ch_mult"]))
        is_attention = ".mid.attn_1." in name and name.endswith("weight") and "norm" not in name
        tensors["first_stage_model." + name] = (value[:, :, None, None] if is_attention else value).half()
    for key, value in text.state_dict().items():
        if "position_ids" not in key:
            tensors["cond_stage_model.transformer." + name_in_files(key)] = value.half()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tensors["betas"] = betas.float()  # half precision here makes sampling NaN
    tensors["alphas_cumprod"] = (1 - betas).cumprod(0).float()
    return {k: v.contiguous().clone() for k, v in tensors.items()}


def load_diffusion(path: Path, text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
    tensors = load_file(path)
    unet.load_state_dict({k: tensors["model.diffusion_model." + unet_to_ldm(k)].float() for k in unet.state_dict()})
    own = {k: v for k, v in text.state_dict().items() if "position_ids" not in k}
    text.load_state_dict(
        {k: tensors["cond_stage_model.transformer." + name_in_files(k)].float() for k in own}, strict=False
    )


def config_yaml() -> str:
    """The v1-inference.yaml of these shapes; the text encoder's folder is named relative to the file."""
    return f"""# SD1-shaped; the tokenizer and CLIP config are in the folder beside this file
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 16
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALE}
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {UNET["model_channels"]}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {UNET["channel_mult"]}
        num_heads: {UNET["num_heads"]}
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: {TEXT_WIDTH}
        use_checkpoint: False
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 128
          in_channels: 3
          out_ch: 3
          ch: {VAE["ch"]}
          ch_mult: {VAE["ch_mult"]}
          num_res_blocks: {VAE["num_res_blocks"]}
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: clip
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--unet-steps", type=int, default=5000)
    parser.add_argument("--colour-steps", type=int, default=5400)
    parser.add_argument("--pool", type=int, default=8000)
    parser.add_argument("--unet", type=Path, help="take UNet and text encoder of an earlier run's checkpoint")
    parser.add_argument("--vae", type=Path, help="take the VAE of an earlier run (a torch file beside the checkpoint)")
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    args.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_vocabulary(args.folder / "clip")
    vae, text, unet = new_models(len(tokenizer), args.folder / "clip")
    for name, part in {"vae": vae, "text": text, "unet": unet}.items():
        print(name, f"{sum(p.numel() for p in part.parameters()):,} parameters")

    def save(text: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        path = args.folder / "small-sd1.safetensors"
        save_file(ldm_state_dict(vae, text, unet), path, metadata={"format": "pt"})
        path.with_suffix(".yaml").write_text(config_yaml(), encoding="utf-8")
        print(f"{path} {path.stat().st_size / 1e6:.1f} MB", flush=True)

    if args.vae:
        vae.load_state_dict(torch.load(args.vae, weights_only=True))
    else:
        train_vae(vae, args.vae_steps, rng)
        normalise_latents(vae, rng)
        torch.save(vae.state_dict(), args.folder / "vae.pt")
    vae.requires_grad_(False)
    pool = latent_pool(vae, args.pool, rng)
    deviation = torch.stack([x for _, x in pool if x.shape[-2:] == (16, 16)]).std()
    print(f"{len(pool)} latents, deviation {deviation:.3f}")
    assert math.isfinite(float(deviation))
    if args.unet:
        load_diffusion(args.unet, text, unet)
    else:
        text, unet = train_diffusion(text, unet, tokenizer, pool, args.unet_steps, rng, rate=1.5e-3)
        save(text, unet)
    text, unet = train_diffusion(text, unet, tokenizer, pool, args.colour_steps, rng, rate=6e-4, colours=0.4)
    save(text, unet)


if __name__ == "__main__":
    main()
