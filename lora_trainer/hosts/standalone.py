"""The embedded default host: loads an SD1 checkpoint file by itself, without a WebUI and without a network."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config import TrainConfig, default_runs_folder
from lora_trainer.errors import InputError, RunError
from lora_trainer.hosts.base import DrawRequest, Folders, LoadedModel, LoraUse
from lora_trainer.hosts.fair_lock import FairLock
from lora_trainer.model.contents import unreadable
from lora_trainer.model.families import (
    SD1,
    SD1_TEXT_PREFIX,
    UNET_PREFIX,
    V1_CONFIG,
    CheckpointInfo,
    family_of,
    native_resolution,
    prediction_type,
)
from lora_trainer.network.block_presets import OWN_ELEMENTS, OWN_LISTS, Presets, load_presets
from lora_trainer.paths import clean_path, expand, is_file

if TYPE_CHECKING:
    import torch
    from PIL import Image

log = logging.getLogger(__name__)
VAE_PREFIX = "first_stage_model."
SAMPLERS = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}


class StandaloneHost:
    """Loads the checkpoint that the config names, once, and keeps it for the next run.

    Args:
        root: folder of everything that is written; runs in ``root/runs`` (or ``LORA_TRAIN_RUNS``).
        checkpoint: used when a config names none.
        language: of the page.
    """

    name = "standalone"
    readable: Sequence[Path] | None = None
    reads_tags = False

    def __init__(self, root: Path | None = None, checkpoint: str = "", language: str = "en") -> None:
        runs = default_runs_folder() if root is None else root / "runs"
        base = runs.parent
        self.folders = Folders(base / "models" / "Lora", runs, base / "cache", base / "presets")
        self.checkpoint = checkpoint
        self._language = language
        self._loaded: tuple[tuple[object, ...], Checkpoint] | None = None
        self._loading = threading.Lock()
        self._turns = FairLock()

    def check(self, config: TrainConfig) -> CheckpointInfo:
        """Look into the checkpoint's header only; raises :class:`InputError`."""
        path = self._path(config)
        keys, shapes = _header(path)
        channels = shapes.get(UNET_PREFIX + "input_blocks.0.0.weight", [0, None])[1]
        family = family_of(keys, channels, name=path)
        if not any(key.startswith(VAE_PREFIX) for key in keys):
            raise InputError(
                "checkpoint: {path} has no VAE in it, which pictures are encoded with; choose one that has.",
                field="checkpoint",
                path=path,
            )
        yaml_config = checkpoint_config(path)
        return CheckpointInfo(path.name, _cached_hash(path), "", family, prediction_type(yaml_config))

    @contextmanager
    def session(self, config: TrainConfig) -> Iterator[StandaloneSession]:
        """Load the checkpoint (or take the one at hand) and give its view."""
        info = self.check(config)
        with self._loading:
            checkpoint = self._load(self._path(config))
        yield StandaloneSession(checkpoint, info, config.training.clip_skip or 1, self._turns)

    def load_checkpoint(self, name: str, sha256: str) -> None:
        """Each run names its own file, which is loaded when the run goes on."""

    def chosen_checkpoint(self) -> str:
        """There is no list to choose from."""
        return ""

    def checkpoints(self) -> Sequence[Path]:
        """The checkpoint that was named at the start, and those beside it."""
        if not self.checkpoint:
            return []
        folder = expand(self.checkpoint).parent
        return sorted(path for path in folder.glob("*.safetensors") if path.is_file())

    def block_presets(self) -> Presets:
        """The shipped ones, with those in the folder of the person's presets."""
        lists, elements = (self.folders.presets / name for name in (OWN_LISTS, OWN_ELEMENTS))
        return load_presets(*(path if path.is_file() else None for path in (lists, elements)))

    def announce(self, path: Path) -> None:
        """Nobody else needs to know."""

    def samplers(self) -> Sequence[str]:
        """The samplers of the diffusers pipeline, under their WebUI names."""
        return list(SAMPLERS)

    def language(self) -> str:
        """Chosen at the start."""
        return self._language

    def native_resolution(self, config: TrainConfig) -> int:
        """From the yaml beside the checkpoint."""
        try:
            return native_resolution(checkpoint_config(self._path(config)))
        except InputError:
            return SD1.resolution

    def is_common_word(self, word: str) -> bool:
        """Asked of the tokenizer, when a checkpoint has been loaded."""
        if self._loaded is None:
            return False
        return (
            len(
                self._loaded[1].tokenizer([word], truncation=False, add_special_tokens=False, verbose=False)[
                    "input_ids"
                ][0]
            )
            == 1
        )

    def words(self, trigger: str) -> Sequence[tuple[str, str]]:
        """None: prompts are read as captions are."""
        return ()

    def _path(self, config: TrainConfig) -> Path:
        name = config.checkpoint or clean_path(self.checkpoint)
        if not name:
            raise InputError(
                'checkpoint: name the checkpoint file to train on (checkpoint = "model.safetensors").',
                field="checkpoint",
            )
        path = expand(name)
        if not is_file(path):
            raise InputError("checkpoint: {path} does not exist; check the path.", field="checkpoint", path=path)
        if path.suffix.lower() != ".safetensors":
            raise InputError(
                "checkpoint: {path} is not a .safetensors file; only these are loaded, since others can hold code.",
                field="checkpoint",
                path=path,
            )
        return path

    def _load(self, path: Path) -> Checkpoint:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_mtime_ns, stat.st_size)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # free the old one first
            self._loaded = (key, Checkpoint(path))
        return self._loaded[1]


class Checkpoint:
    """A checkpoint file in memory: parameters under LDM names, tokenizer and VAE."""

    def __init__(self, path: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from torch import nn

        from lora_trainer.model.fingerprint import hash_tensors
        from lora_trainer.model.schedule import ldm_alphas

        self.path = path
        self.config = checkpoint_config(path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        state = load_file(path)
        self.unet = _parameters(state, UNET_PREFIX, self.device, dtype, nn.Parameter)
        text = _parameters(state, SD1_TEXT_PREFIX, self.device, dtype, nn.Parameter)
        self.text = {n: p for n, p in text.items() if not n.endswith("position_ids")}
        self.vae = _load_vae(state, self.config, self.device)
        self.vae_key = hash_tensors(p for n, p in self.vae.named_parameters() if n.startswith(("encoder", "quant")))
        self.alphas_cumprod = ldm_alphas(self.config)
        self.text_folder = clip_folder(path, self.config)
        self.tokenizer = load_tokenizer(self.text_folder)
        self.text_config = _text_config(self.text_folder, self.text)
        self.scale = float(self.config["model"]["params"].get("scale_factor", 0.18215))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) in −1…1 → the posterior's mean times the scale factor, fp32."""
        import torch

        with torch.no_grad():
            return self.vae.encode(pixels.to(self.device)).latent_dist.mean * self.scale

    def view(self, info: CheckpointInfo, clip_skip: int) -> LoadedModel:
        """A fresh view of the same parameters."""
        from lora_trainer.model.text import TextEncoder
        from lora_trainer.model.view import text_view, unet_view

        return LoadedModel(
            info=info,
            unet=unet_view(self.unet, self.config),
            text=TextEncoder(text_view(self.text, self.text_config), self.tokenizer, clip_skip),
            alphas_cumprod=self.alphas_cumprod,
            encode=self.encode,
            vae_key=self.vae_key,
            device=self.device,
            clip_skip=clip_skip,
        )


class StandaloneSession:
    """A run's hold on a :class:`Checkpoint`."""

    def __init__(self, checkpoint: Checkpoint, info: CheckpointInfo, clip_skip: int, turns: FairLock) -> None:
        self._turns = turns
        self.on_wait: Callable[[bool], object] = lambda waits: None
        self._checkpoint = checkpoint
        self._info = info
        self._clip_skip = clip_skip
        self._drawing: Drawing | None = None

    @cached_property
    def model(self) -> LoadedModel:
        """The view; made when it is first asked for, since drawing has views of its own."""
        return self._checkpoint.view(self._info, self._clip_skip)

    @contextmanager
    def turn(self, *, drawing: bool = False) -> Iterator[None]:
        """Take turns with whatever else this process does; pictures are drawn on a view of their own."""
        with self._turns.turn(self.on_wait):
            yield

    def wanted(self) -> bool:
        """Whether another thread of this process waits."""
        return self._turns.wanted

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        """Draw with a diffusers pipeline on a second view of the same weights, the LoRA read from its file."""
        import diffusers
        import torch

        request = requests[0]
        drawing = self._drawing_for(lora)
        pipeline = drawing.pipeline
        name, arguments = SAMPLERS.get(request.sampler) or SAMPLERS["Euler a"]
        alphas = self._checkpoint.alphas_cumprod
        betas = 1 - alphas / torch.cat([torch.ones(1), alphas[:-1]])
        pipeline.scheduler = getattr(diffusers, name)(
            trained_betas=betas.tolist(), prediction_type=self._info.prediction, steps_offset=1, **arguments
        )
        with torch.no_grad():
            states = drawing.text([*(r.prompt for r in requests), request.negative])
            output = pipeline(
                prompt_embeds=states[:-1],
                negative_prompt_embeds=states[-1:].expand(len(requests), -1, -1),
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.cfg,
                generator=[torch.Generator().manual_seed(r.seed) for r in requests],
            )
        for each, image in zip(requests, output.images, strict=True):
            image.info["parameters"] = self._infotext(each, lora)
        return list(output.images)

    def draw_settings(self) -> str:
        """Clip skip; there are no others."""
        return f"Clip skip: {self._clip_skip}"

    def _infotext(self, request: DrawRequest, lora: LoraUse | None) -> str:
        """How a picture was made, in the form that the WebUI writes and reads (modules/infotext_utils.py)."""
        values = {
            "Steps": request.steps,
            "Sampler": request.sampler,
            "CFG scale": f"{request.cfg:g}",
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": self._info.sha256[:10],
            "Model": Path(self._info.name).stem,
            **({"Clip skip": self._clip_skip} if self._clip_skip > 1 else {}),
        }
        negative = [f"Negative prompt: {request.negative}"] if request.negative else []
        prompt = request.prompt + (lora.tag if lora else "")
        return "\n".join([prompt, *negative, ", ".join(f"{k}: {v}" for k, v in values.items() if v != "")])

    def show_progress(self, name: str, step: int, steps: int) -> None:
        """The command line has its own bar."""

    def interrupted(self) -> bool:
        """Ctrl-C is handled by the command line."""
        return False

    def _drawing_for(self, lora: LoraUse | None) -> Drawing:
        """The pipeline for a LoRA; the one at hand is kept while only the weights change."""
        path = lora.path if lora else None
        if self._drawing is None or self._drawing.path != path:
            self._drawing = Drawing(self._checkpoint, self._checkpoint.view(self._info, self._clip_skip), path)
        if lora is not None:
            self._drawing.set_weight(lora.weight, lora.lbw)
        return self._drawing


class Drawing:
    """A diffusers pipeline on a view of its own, with the LoRA of a file on it.

    Args:
        checkpoint: gives VAE and tokenizer.
        model: the view.
        path: the LoRA file, or ``None`` for the checkpoint alone.
    """

    def __init__(self, checkpoint: Checkpoint, model: LoadedModel, path: Path | None) -> None:
        from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

        from lora_trainer.network.adapters import adapters_for
        from lora_trainer.network.lora_file import read_lora

        self.path = path
        self.text = model.text
        self._adapters = adapters_for(model.unet, model.text.model, read_lora(path)) if path else None
        self.pipeline = StableDiffusionPipeline(
            vae=checkpoint.vae,
            text_encoder=model.text.model,
            tokenizer=checkpoint.tokenizer,
            unet=model.unet.eval(),
            scheduler=EulerAncestralDiscreteScheduler(steps_offset=1),  # each picture sets its own
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def set_weight(self, weight: float, lbw: str = "") -> None:
        """The number and the list in ``<lora:name:0.8:lbw=list>``; raises :class:`InputError` for a wrong list."""
        from lora_trainer.network.block_weights import factors, resolve
        from lora_trainer.network.blocks import SD

        if self._adapters is None:
            return
        self._adapters.set_multiplier(weight)
        if lbw:
            blocks = resolve(lbw, SD)
            self._adapters.scale_each(factors(self._adapters.layers, blocks, weight, weight))


# ------------------------------------------------------------------ reading the file
def checkpoint_config(path: Path) -> dict[str, Any]:
    """The yaml beside the checkpoint, or SD1's own.

    Raises:
        InputError: the yaml cannot be read.
    """
    import yaml

    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return V1_CONFIG
    try:
        config = yaml.safe_load(beside.read_text(encoding="utf-8-sig"))
        config["model"]["params"]["unet_config"]["params"]["model_channels"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            "checkpoint: {path} beside the checkpoint cannot be used: {error}.",
            field="checkpoint",
            path=beside,
            error=error,
        ) from error
    return config


def _header(path: Path) -> tuple[list[str], dict[str, list[int]]]:
    """Names and shapes of a safetensors file, without its weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            name = UNET_PREFIX + "input_blocks.0.0.weight"
            shapes = {name: file.get_slice(name).get_shape()} if name in keys else {}
            return keys, shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error, "checkpoint") from error


def _parameters(
    state: Mapping[str, torch.Tensor], prefix: str, device: torch.device, dtype: torch.dtype, kind: Any
) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): kind(value.to(device, dtype), requires_grad=False)
        for name, value in state.items()
        if name.startswith(prefix) and value.is_floating_point()
    }


def _load_vae(state: Mapping[str, torch.Tensor], config: Mapping[str, Any], device: torch.device) -> Any:
    """The checkpoint's VAE in fp32."""
    import torch
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, create_vae_diffusers_config_from_ldm

    part = {name: value.float() for name, value in state.items() if name.startswith(VAE_PREFIX)}
    try:
        vae_config = create_vae_diffusers_config_from_ldm(config, part)
        with torch.device("meta"):
            vae = AutoencoderKL(**vae_config)
        vae.load_state_dict(convert_ldm_vae_checkpoint(part, vae_config), assign=True)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(
            "The checkpoint's weights do not fit its .yaml: {error}.",
            error=f"{type(error).__name__} {error}".splitlines()[-1].strip()[:200],
        ) from error
    return vae.to(device).eval().requires_grad_(False)


_hashes: dict[tuple[str, int, int], str] = {}


def _cached_hash(path: Path) -> str:
    """SHA-256 of a file, computed once as long as it does not change."""
    from lora_trainer.dataset.scan import file_hash

    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _hashes:
        _hashes[key] = file_hash(path)
    return _hashes[key]


# ------------------------------------------------------------------ the tokenizer
def clip_folder(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The folder with the CLIP tokenizer and config: named by the yaml (relative to it), or ``LORA_TRAIN_CLIP``."""
    encoder = config["model"]["params"].get("cond_stage_config") or {}
    version = str((encoder.get("params") or {}).get("version") or "")
    for candidate in (path.parent / version if version else None, Path(version) if version else None):
        if candidate is not None and (candidate / "vocab.json").is_file():
            return candidate
    chosen = os.environ.get("LORA_TRAIN_CLIP", "")
    return expand(chosen) if chosen else None


def load_tokenizer(folder: Path | None) -> Any:
    """A CLIP tokenizer from a local folder, or made from the word list that open_clip and clip carry.

    Raises:
        InputError: there is none on this machine.
    """
    from transformers import CLIPTokenizer

    if folder is not None:
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                "The CLIP tokenizer in {folder} cannot be read: {error}.", folder=folder, error=error
            ) from error
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            words = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
            if words.is_file():
                return _tokenizer_from_words(words)
    raise InputError(
        "No CLIP tokenizer was found: run “pip install clip-anytorch”, or put vocab.json and merges.txt into a folder "
        "and name it in LORA_TRAIN_CLIP."
    )


def _tokenizer_from_words(path: Path) -> Any:
    """CLIP's vocabulary from OpenAI's list of merges (``clip/simple_tokenizer.py``)."""
    import gzip
    import tempfile

    from transformers import CLIPTokenizer

    from lora_trainer.model.clip import byte_letters, write_tokenizer

    merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = byte_letters()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), [*tokens, "<|startoftext|>", "<|endoftext|>"], merges)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _text_config(folder: Path | None, parameters: Mapping[str, torch.Tensor]) -> Any:
    """The CLIP config in the folder, or CLIP ViT-L/14's (which SD1 uses)."""
    from transformers import CLIPTextConfig

    if folder is not None and (folder / "config.json").is_file():
        return CLIPTextConfig.from_pretrained(folder, local_files_only=True)
    return CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        vocab_size=parameters["text_model.embeddings.token_embedding.weight"].shape[0],
    )
