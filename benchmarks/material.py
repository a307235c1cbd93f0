"""What is trained on: a full-size SD1.5 checkpoint with random weights, a tokenizer and drawn pictures.

Nothing is downloaded. Both programs get the same files, which are kept for the next time.
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = "LORA_TRAIN_BENCH"
CHECKPOINT = Path(__file__).resolve().parent.parent / "lora_trainer" / "demo" / "assets" / "small-sd1.safetensors"
PICTURES = 20
_VOCABULARY = 49408
_MORE_TAGS = ("solo", "flat", "simple", "clean")  # people's captions have more than the two or three of a drawing


@dataclass(frozen=True)
class Material:
    """The files of a benchmark.

    Attributes:
        folder: everything is in here.
        checkpoint: LDM names, fp16, 2.1 GB.
        tokenizer: a CLIP tokenizer with SD1's number of tokens.
        pictures: a folder with one kohya folder of pictures and captions in it.
    """

    folder: Path
    checkpoint: Path
    tokenizer: Path
    pictures: Path


def prepare(resolution: int, *, full_size: bool = True) -> Material:
    """Make what is missing; with the demo's small checkpoint when it is not to be ``full_size``."""
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / "lora-train-bench")
    material = Material(
        folder,
        folder / "full-size-random.safetensors" if full_size else CHECKPOINT,
        # sd-scripts looks for this name
        folder / "tokenizers" / "openai_clip-vit-large-patch14" if full_size else CHECKPOINT.parent / "clip",
        folder / f"pictures-{resolution}",
    )
    if not material.checkpoint.is_file():
        print(f"Writing a checkpoint with random weights to {material.checkpoint} …", flush=True)
        _write_checkpoint(material.checkpoint)
    if not (material.tokenizer / "vocab.json").is_file():
        _write_tokenizer(material.tokenizer)
    if not material.pictures.is_dir():
        _draw_pictures(material.pictures, resolution)
    return material


def _draw_pictures(folder: Path, resolution: int) -> None:
    from lora_trainer.demo import drawings

    place = folder / "1_zorp"
    place.mkdir(parents=True)
    rng = random.Random(1)
    for index in range(PICTURES):
        scene = drawings.zorp_scene(rng)
        drawings.draw(scene, resolution, resolution, rng).save(place / f"{index:02d}.png")
        tags = [*scene.tags(), *_MORE_TAGS]
        (place / f"{index:02d}.txt").write_text(", ".join(tags) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer without merges: single bytes, filled up to SD1's number of tokens.

    A caption of up to 75 letters is then one chunk of 77 tokens, as with the real words.
    """
    from lora_trainer.model.clip import byte_letters, write_tokenizer

    letters = byte_letters()
    tokens = letters + [c + "</w>" for c in letters]
    tokens += [f"<|unused{i}|>" for i in range(_VOCABULARY - 2 - len(tokens))]
    write_tokenizer(folder, [*tokens, "<|startoftext|>", "<|endoftext|>"], [])


def _write_checkpoint(path: Path) -> None:
    """SD1.5's shapes with the libraries' own initial weights, seeded, so that nothing is NaN; made on a card if any.

    A card draws other numbers than a processor.
    """
    import torch

    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        _write_random(path)


def _write_random(path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    from lora_trainer.model.clip import name_in_files
    from lora_trainer.model.families import SD1
    from lora_trainer.model.ldm_names import unet_to_ldm, vae_to_ldm

    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    tensors |= {SD1.unet.stored + unet_to_ldm(name): value.half() for name, value in unet.state_dict().items()}
    del unet
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=_VOCABULARY, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, projection_dim=768,
        )
    )  # fmt: skip
    tensors |= {SD1.encoders[0].stored + name_in_files(name): value.half() for name, value in text.named_parameters()}
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    for name, value in vae.state_dict().items():
        ldm = "first_stage_model." + vae_to_ldm(name)
        is_convolution = ".attn_1." in ldm and value.ndim == 2  # LDM has 1×1 convolutions there
        tensors[ldm] = (value[:, :, None, None] if is_convolution else value).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata={"format": "pt"})
    temporary.replace(path)
