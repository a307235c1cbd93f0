"""AUTOMATIC1111's stable-diffusion-webui (v1.10.1): the checkpoint that it has loaded, in its own process.

Line numbers in comments are of commit 82a973c0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from modules import devices, lowvram, paths, scripts, sd_hijack, sd_models, sd_samplers, sd_vae, shared
from modules.call_queue import queue_lock
from modules.processing import StableDiffusionProcessingTxt2Img, process_images
from safetensors import SafetensorError, safe_open

from lora_trainer.config import TrainConfig
from lora_trainer.errors import CheckpointChanged, InputError, Interrupted, RunError
from lora_trainer.hosts.a1111_gate import Gate, HeldGate
from lora_trainer.hosts.a1111_lora import data_folder, language, lora_networks, person_presets
from lora_trainer.hosts.a1111_rebuild import reload
from lora_trainer.hosts.a1111_words import meanings
from lora_trainer.hosts.base import DrawRequest, Folders, LoadedModel, LoraUse
from lora_trainer.hosts.network_views import original
from lora_trainer.model.families import SD1, UNET_PREFIX, CheckpointInfo, family_of, native_resolution
from lora_trainer.network.lora_tag import TAG
from lora_trainer.training.precision import without_autocast

if TYPE_CHECKING:
    from PIL import Image

    from lora_trainer.network.block_presets import Presets

log = logging.getLogger(__name__)


class A1111Host:
    """The WebUI."""

    name = "a1111"
    reads_tags = True

    def __init__(self) -> None:
        base = data_folder()
        self.folders = Folders(Path(shared.cmd_opts.lora_dir), base / "runs", base / "cache", base / "presets")
        self.readable = _readable_folders()
        self._flags = Flags()

    def check(self, config: TrainConfig) -> CheckpointInfo:
        """What is chosen at the top of the page; raises :class:`InputError` when it cannot be trained."""
        model, chosen = loaded_model(), _chosen()
        if chosen is None or chosen.filename == model.sd_checkpoint_info.filename:
            return checkpoint_info(model)
        return _info_of_file(chosen) or checkpoint_info(model)

    @contextmanager
    def session(self, config: TrainConfig) -> Iterator[A1111Session]:
        """Take hold of the loaded model; the host is left as it was found.

        Raises:
            CheckpointChanged: there is none at this moment.
        """
        with self._session(config, Gate()) as session:
            yield session

    @contextmanager
    def session_of_script(self, config: TrainConfig) -> Iterator[A1111Session]:
        """The same within a picture of the person's, where the host's lock is held and the job shown already."""
        with self._session(config, HeldGate()) as session:
            yield session

    @contextmanager
    def _session(self, config: TrainConfig, gate: Gate) -> Iterator[A1111Session]:
        session = A1111Session(config, self._flags, gate)
        try:
            yield session
        finally:
            session.close()

    def load_checkpoint(self, name: str, sha256: str) -> None:
        """As if it were chosen at the top of the page."""
        known = sd_models.checkpoints_list.values()
        info = next((i for i in known if sha256 and i.sha256 == sha256), None)
        info = info or next((i for i in known if Path(i.filename).name == name), None)
        if info is None:
            raise InputError(
                "The checkpoint {name} is not among those of the WebUI; put it into models/Stable-diffusion.", name=name
            )
        with queue_lock:
            shared.opts.set("sd_model_checkpoint", info.title, run_callbacks=False)
            sd_models.reload_model_weights(info=info)
            model = sd_models.model_data.sd_model
            if not getattr(model, "lowvram", False):
                model.to(devices.device)  # it may be the one that was loaded, but moved away

    def chosen_checkpoint(self) -> str:
        """Its title in the list at the top of the page."""
        return str(shared.opts.sd_model_checkpoint or "")

    def checkpoints(self) -> Sequence[Path]:
        """Those in its list that may be read here."""
        files = (Path(info.filename) for info in sd_models.checkpoints_list.values())
        return sorted(path for path in files if path.suffix.lower() == ".safetensors")

    def block_presets(self) -> Presets:
        """The shipped ones, the person's own, and those of sd-webui-lora-block-weight."""
        return person_presets()

    def announce(self, path: Path) -> None:
        """Register the file under its own name, or an epoch file's alias would stand in for it."""
        if networks := lora_networks():
            networks.update_available_networks_by_names([path.stem])

    def samplers(self) -> Sequence[str]:
        """The samplers that txt2img offers."""
        return sd_samplers.visible_sampler_names()

    def language(self) -> str:
        """Chinese when the WebUI's localization is a Chinese one."""
        return language()

    def native_resolution(self, config: TrainConfig) -> int:
        """From the yaml of the loaded checkpoint."""
        model = sd_models.model_data.sd_model
        return native_resolution(_config_of(model)) if model is not None else SD1.resolution

    def is_common_word(self, word: str) -> bool:
        """Asked of the loaded checkpoint's tokenizer."""
        embedder = getattr(getattr(sd_models.model_data.sd_model, "cond_stage_model", None), "wrapped", None)
        tokenizer = getattr(embedder, "tokenizer", None)
        if tokenizer is None:
            return False
        return len(tokenizer([word], truncation=False, add_special_tokens=False, verbose=False)["input_ids"][0]) == 1

    def words(self, trigger: str) -> Sequence[tuple[str, str]]:
        """Embeddings, styles, wildcards and the syntax of prompts."""
        return meanings(trigger)


class Flags:
    """The parameters' requires_grad flags, which a view freezes; put back when the last session leaves."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, dict[torch.nn.Parameter, bool]]] = {}

    def hold(self, sd_model: Any) -> None:
        """Remember the flags; call it with the host's lock held."""
        count, flags = self._kept.get(id(sd_model), (0, {}))
        self._kept[id(sd_model)] = count + 1, flags or {p: p.requires_grad for p in sd_model.parameters()}

    def release(self, sd_model: Any) -> None:
        """Put the flags back when nobody else holds them."""
        count, flags = self._kept.pop(id(sd_model))
        if count > 1:
            self._kept[id(sd_model)] = count - 1, flags
            return
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


class A1111Session:
    """A run's hold on the loaded model."""

    def __init__(self, config: TrainConfig, flags: Flags, gate: Gate) -> None:
        self._config = config
        self._flags = flags
        self._gate = gate
        self._has_turn = False
        self._progress = (config.name, 0, 0)
        self._interrupted = False
        self._network: Any = None  # the last drawn with, so that its file is not read for every picture
        self._began = time.time()
        self.on_wait: Callable[[bool], object] = lambda waits: None
        with self._gate.turn():  # another thread may be putting a checkpoint away just now
            try:
                load_chosen()
                self._sd_model = loaded_model()
                require_trainable(self._sd_model)
            except InputError as error:
                raise CheckpointChanged(error.template) from error
            self._identity = _identity(self._sd_model)
            flags.hold(self._sd_model)

    @cached_property
    def model(self) -> LoadedModel:
        """The view; made in a turn when it is first asked for, since drawing does without."""
        if self._has_turn:
            return _view(self._sd_model, self._config)
        with self.turn():
            return _view(self._sd_model, self._config)

    @contextmanager
    def turn(self, *, drawing: bool = False) -> Iterator[None]:
        """Our slice: the lock is held, the weights are clean (unless we only draw) and on the device."""
        with self._gate.turn(self.on_wait):
            self._require_same_checkpoint()
            if not drawing:
                clean_weights(self._sd_model)
            self._has_turn = True
            try:
                with self._on_device(), self._own_state():
                    yield
            finally:
                self._has_turn = False

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        """The pictures that txt2img draws with the LoRA's tag in the prompts.

        What *Reload UI* has interrupted is drawn again on the new page.
        """
        while True:
            if not self._gate.is_held:
                reload.wait()
            images, interrupted = self._drawn(requests, lora)
            if not interrupted or not reload.going_on or self._gate.is_held:
                break
        if interrupted or len(images) < len(requests):  # what was interrupted is there, but not finished
            raise Interrupted("The picture was interrupted.")
        return images[: len(requests)]

    def _drawn(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> tuple[list[Image.Image], bool]:
        """Pictures, and whether they were interrupted."""
        request = requests[0]
        if sd_models.select_checkpoint().filename != self._sd_model.sd_checkpoint_info.filename:
            raise _changed()  # process_images would load the other one
        with _known_network(lora) as tag, _kept_prompt_history():
            _remember(self._network)
            processing = StableDiffusionProcessingTxt2Img(
                sd_model=self._sd_model,
                prompt=[r.prompt + tag for r in requests],
                negative_prompt=request.negative,
                seed=[r.seed for r in requests],
                batch_size=len(requests),
                sampler_name=request.sampler,
                steps=request.steps,
                cfg_scale=request.cfg,
                width=request.width,
                height=request.height,
                outpath_samples=shared.opts.outdir_txt2img_samples,
                outpath_grids=shared.opts.outdir_txt2img_grids,
                do_not_save_samples=True,
                do_not_save_grid=True,
                **_own_parameters(requests, tag),
            )
            with contextlib.closing(processing):
                processing.is_api = True  # the page's own fields (seed, sampler) must not stand in for these
                processing.scripts = scripts.scripts_txt2img
                processing.script_args = tuple(_script_defaults())
                with self._gate.job():
                    images = process_images(processing).images
                    interrupted = shared.state.interrupted or shared.state.skipped
            if not interrupted:  # else the tags may not have been read yet
                self._network = _loaded(lora)
                _require_tags(request.prompt)
        return images, interrupted

    def draw_settings(self) -> str:
        """The options that the WebUI itself writes into a picture's text."""
        opts = shared.opts
        return repr(sorted((k, opts.data.get(k, i.default)) for k, i in opts.data_labels.items() if i.infotext))

    def wanted(self) -> bool:
        """Whether a picture waits."""
        return self._gate.wanted

    def show_progress(self, name: str, step: int, steps: int) -> None:
        """For the WebUI's progress API; shown while it is our turn."""
        self._progress = (name, step, steps)

    def interrupted(self) -> bool:
        """Interrupt was pressed in our turn while nobody was waiting, so it was meant for us."""
        pressed, self._interrupted = self._interrupted, False
        return pressed

    def close(self) -> None:
        """Leave the host as it was found: weights clean, flags and places as before."""
        with self._gate.turn():
            self._flags.release(self._sd_model)
            if _identity(self._sd_model) == self._identity:
                clean_weights(self._sd_model)
            if getattr(self._sd_model, "lowvram", False):
                lowvram.send_everything_to_cpu()
                self._sd_model.cond_stage_model.to(devices.cpu)
            devices.torch_gc()

    def _require_same_checkpoint(self) -> None:
        """A switch to a checkpoint of the same shape loads it into the same parameters (sd_models.py:951)."""
        self._bring_back()
        if sd_models.model_data.sd_model is not self._sd_model:
            raise _changed()
        now = _identity(self._sd_model)
        if now != self._identity:
            in_other_form = replace(self._identity, forms=now.forms, numbers=now.numbers)
            raise _reformatted() if now.forms != self._identity.forms and now == in_other_form else _changed()
        if is_put_away(self._sd_model):
            raise CheckpointChanged("The checkpoint was unloaded; the run goes on when it is loaded again.")

    def _bring_back(self) -> None:
        """Load our checkpoint where it is the chosen one, but a picture has left another in memory."""
        chosen = _chosen()
        if chosen is None or chosen.filename != self._identity.file:
            return
        try:
            load_chosen()
        except RunError as error:
            raise _changed() from error  # so that what is learned is kept

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """With --medvram and --lowvram the parts are moved by hooks on the host's modules, which we do not call."""
        model = self._sd_model
        if not getattr(model, "lowvram", False):
            yield
            return
        if lowvram.module_in_gpu not in (None, model.model):
            lowvram.module_in_gpu.to(devices.cpu)
        model.model.to(devices.device)
        model.cond_stage_model.wrapped.transformer.to(devices.device)
        lowvram.module_in_gpu = model.model
        try:
            yield
        finally:
            if shared.cmd_opts.lowvram:  # its hooks move single blocks and know nothing of the whole
                unet = model.model.diffusion_model
                for part in (unet.time_embed, unet.input_blocks, unet.middle_block, unet.output_blocks):
                    part.to(devices.cpu)
                lowvram.module_in_gpu = None

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Show our progress in shared.state while nothing else does; it is empty again after."""
        state = shared.state
        name, step, steps = self._progress
        if state.job:
            yield
            return
        state.job, state.job_no, state.job_count = f"LoRA Train: {name}", step, steps
        state.sampling_step, state.sampling_steps, state.current_latent = 0, 0, None
        state.time_start, state.textinfo = self._began, f"LoRA Train: {step}/{steps}"
        state.interrupted = False
        try:
            yield
        finally:
            if state.interrupted and not self._gate.wanted and not reload.going_on:
                self._interrupted = True
            state.job, state.job_no, state.job_count, state.textinfo = "", 0, 0, None
            state.interrupted = False


def _readable_folders() -> list[Path] | None:
    """As cautious as the WebUI's extension tab: reachable from elsewhere, only its own folders are read."""
    if not shared.cmd_opts.disable_extension_access:
        return None
    return [Path(folder) for folder in (paths.data_path, *(shared.cmd_opts.gradio_allowed_path or ()))]


# ------------------------------------------------------------------ what is loaded
def loaded_model() -> Any:
    """The loaded checkpoint; one that was never loaded is loaded now.

    Raises:
        InputError: there is none.
    """
    model = shared.sd_model if not sd_models.model_data.was_loaded_at_least_once else sd_models.model_data.sd_model
    if model is None or next(model.parameters()).is_meta:
        raise InputError("No checkpoint is loaded; choose one at the top of the page.", field="checkpoint")
    if is_put_away(model):
        raise InputError("The checkpoint is unloaded; load it again in the WebUI's settings.", field="checkpoint")
    return model


def _chosen() -> Any:
    """The WebUI's entry of the checkpoint that is chosen; ``None`` when it has none of that name any more."""
    return sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)


def load_chosen() -> None:
    """Load the checkpoint that is chosen at the top of the page, as the WebUI does before its next picture.

    A picture whose settings name another checkpoint (``override_settings``) leaves that one in memory
    (processing.py:853). Call it with the host's lock held.

    Raises:
        RunError: it cannot be loaded.
    """
    model, chosen = sd_models.model_data.sd_model, _chosen()
    if model is None or chosen is None or model.sd_checkpoint_info.filename == chosen.filename:
        return
    try:
        sd_models.reload_model_weights(info=chosen)
    except Exception as error:
        log.exception("Loading %s failed", chosen.filename)
        raise RunError("The WebUI could not load {path}; its console tells why.", path=chosen.filename) from error


def _info_of_file(chosen: Any) -> CheckpointInfo | None:
    """What a checkpoint is that will be loaded for the next picture; ``None`` when its file does not tell.

    What it predicts, and its VAE, are known once it is loaded.
    """
    try:
        with safe_open(chosen.filename, framework="pt") as file:
            keys = list(file.keys())
            first = UNET_PREFIX + "input_blocks.0.0.weight"
            channels = file.get_slice(first).get_shape()[1] if first in keys else None
    except (SafetensorError, OSError, ValueError):
        return None  # a .ckpt, or gone
    name = Path(chosen.filename).name
    family = family_of(keys, channels, name=name)
    return CheckpointInfo(name, chosen.sha256 or "", chosen.hash or "", family, "epsilon")


def is_put_away(sd_model: Any) -> bool:
    """Whether the WebUI's “unload” has moved it off the device (sd_models.py:738)."""
    if getattr(sd_model, "lowvram", False):
        return False  # its parts come and go
    return next(sd_model.model.parameters()).device.type != devices.device.type


def checkpoint_info(sd_model: Any) -> CheckpointInfo:
    """What the loaded checkpoint is; raises :class:`InputError` for kinds that cannot be trained."""
    require_trainable(sd_model)
    keys = [UNET_PREFIX + name for name, _ in sd_model.model.diffusion_model.named_parameters()]
    keys += [_text_marker(sd_model)]
    channels = getattr(sd_model.model.diffusion_model, "in_channels", None)
    info = sd_model.sd_checkpoint_info
    family = family_of(keys, channels, name=Path(info.filename).name)
    prediction = "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
    return CheckpointInfo(
        Path(info.filename).name,
        info.sha256 or "",
        info.hash or "",
        family,
        prediction,
        sd_vae.get_loaded_vae_name() or "",
        fingerprint(sd_model),
    )


_fingerprints: weakref.WeakKeyDictionary[Any, tuple[tuple[object, ...], str]] = weakref.WeakKeyDictionary()


def fingerprint(sd_model: Any) -> str:
    """Of the loaded weights: there is no other way to tell them with ``--no-hashing``, nor when a file was replaced.

    Computed again only when weights were changed in place, as by another checkpoint; of those that a LoRA changes for
    a picture, the host's own copies from before count.
    """
    from lora_trainer.model.fingerprint import sampled_fingerprint

    parts = {"unet": sd_model.model.diffusion_model, "text": sd_model.cond_stage_model}
    named = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters()}
    mark = (sd_model.sd_checkpoint_info.filename, len(named), sum(map(_changes, named.values())))
    known = _fingerprints.get(sd_model)
    if known is None or known[0] != mark:
        kept = _kept_weights(parts.values())
        # the host wraps the token embedding, and unwraps it now and then (sd_hijack.py:222)
        clean = {name.replace("wrapped.", ""): kept.get(id(p), p) for name, p in named.items()}
        _fingerprints[sd_model] = known = mark, sampled_fingerprint(clean)
    return known[1]


def _changes(parameter: torch.Tensor) -> int:
    """How often it was changed in place."""
    try:
        return parameter._version
    except RuntimeError:  # made in inference mode, which counts nothing
        return 0


def _kept_weights(modules: Iterable[torch.nn.Module]) -> dict[int, torch.Tensor]:
    """By the id of a parameter, the host's copy of it from before it put a LoRA in (networks.py:425)."""
    found: dict[int, torch.Tensor] = {}
    for module in (each for part in modules for each in part.modules()):
        weights, bias = (getattr(module, f"network_{name}_backup", None) for name in ("weights", "bias"))
        last = getattr(module, "out_proj", module) if isinstance(module, torch.nn.MultiheadAttention) else module
        if isinstance(weights, tuple):
            found[id(module.in_proj_weight)], found[id(last.weight)] = weights
        elif weights is not None:
            found[id(last.weight)] = weights
        if isinstance(bias, torch.Tensor):
            found[id(last.bias)] = bias
    return found


def _config_of(sd_model: Any) -> dict[str, Any]:
    return yaml.safe_load(Path(sd_model.used_config).read_text(encoding="utf-8"))


def _text_marker(sd_model: Any) -> str:
    """A key that tells the family by its text encoder (the host's own flags, sd_models.py:379)."""
    if getattr(sd_model, "is_sd3", False):
        return "model.diffusion_model.x_embedder"
    if getattr(sd_model, "is_sdxl", False):
        return "conditioner.embedders.1"
    if getattr(sd_model, "is_sd2", False):
        return "cond_stage_model.model."
    transformer = getattr(getattr(sd_model.cond_stage_model, "wrapped", None), "transformer", None)
    return "cond_stage_model.transformer.text_model" if hasattr(transformer, "text_model") else ""


@dataclass(frozen=True)
class Identity:
    """What must stay the same during a run.

    Attributes:
        file: path of the checkpoint.
        sha256: of it.
        weights: the UNet's first parameter, and whether its numbers are there.
        numbers: a fingerprint of all weights; empty where they have none that can be read.
        forms: number format and strides of a matrix and a convolution of the UNet and a matrix of the text encoder.
    """

    file: str
    sha256: str
    weights: tuple[int, bool]
    numbers: str
    forms: tuple[object, ...]


def _identity(sd_model: Any) -> Identity:
    info, first = sd_model.sd_checkpoint_info, next(sd_model.model.parameters())
    forms = tuple((weight.dtype, weight.stride()) for weight in _some_weights(sd_model))
    readable = not first.is_meta and not _is_fp8(sd_model)
    numbers = fingerprint(sd_model) if readable else ""
    return Identity(info.filename, info.sha256 or "", (id(first), first.is_meta), numbers, forms)


def _some_weights(sd_model: Any) -> list[torch.Tensor]:
    """A weight of every kind that the host stores in a form of its own (sd_models.py:461, 502)."""
    unet = sd_model.model.diffusion_model
    text = getattr(sd_model, "cond_stage_model", None) or getattr(sd_model, "conditioner", None)
    found = [next((p for p in unet.parameters() if p.dim() == size), None) for size in (2, 4)]
    found += [next((p for p in text.parameters() if p.dim() == 2), None) if text is not None else None]
    return [weight for weight in found if weight is not None]


def _is_fp8(sd_model: Any) -> bool:
    return any("float8" in str(weight.dtype) for weight in _some_weights(sd_model))


def require_trainable(sd_model: Any) -> None:
    """Raises :class:`InputError` for weights in a number format that nothing can be computed in."""
    if _is_fp8(sd_model):
        raise InputError(
            "The checkpoint is loaded in FP8, which cannot be trained or measured; set Settings → Optimizations → FP8 "
            "weight to Disable.",
            field="checkpoint",
        )


def _changed() -> CheckpointChanged:
    return CheckpointChanged(
        "The WebUI has switched to another checkpoint; the run goes on when its own is loaded again."
    )


def _reformatted() -> CheckpointChanged:
    return CheckpointChanged(
        "The WebUI holds the checkpoint in another number format now (FP8 weight); the run goes on when that is as it "
        "was."
    )


def _view(sd_model: Any, config: TrainConfig) -> LoadedModel:
    from lora_trainer.model.schedule import unrounded
    from lora_trainer.model.text import TextEncoder
    from lora_trainer.model.view import text_view, unet_view

    info = checkpoint_info(sd_model)
    unet_config = _config_of(sd_model)
    embedder = sd_model.cond_stage_model.wrapped
    # the host wraps the token embedding to insert textual inversions (sd_hijack.py:222)
    text = {name.replace(".wrapped.", "."): p for name, p in embedder.transformer.named_parameters()}
    clip_skip = config.training.clip_skip or int(shared.opts.CLIP_stop_at_last_layers)
    encoder = TextEncoder(
        text_view(text, embedder.transformer.config),
        embedder.tokenizer,
        clip_skip,
        int(shared.opts.comma_padding_backtrack),
    )
    schedule = getattr(sd_model, "alphas_cumprod_original", sd_model.alphas_cumprod)
    vae = sd_model.first_stage_model
    return LoadedModel(
        info=info,
        unet=unet_view(dict(sd_model.model.diffusion_model.named_parameters()), unet_config),
        text=encoder,
        # FP8 weights leave it in half precision, also when they are off again (sd_models.py:416)
        alphas_cumprod=unrounded(schedule.detach().float().cpu(), unet_config),
        encode=lambda pixels: encode_pixels(sd_model, pixels),
        vae_key=_vae_key(vae),
        device=devices.device,
        clip_skip=clip_skip,
    )


def _vae_key(vae: Any) -> str:
    """The weights themselves tell the VAE, whether it came with the checkpoint or from a file."""
    from lora_trainer.model.fingerprint import hash_tensors

    return hash_tensors(p for name, p in vae.named_parameters() if name.startswith(("encoder", "quant")))


def encode_pixels(sd_model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) in −1…1 → the posterior's mean times the scale factor, in fp32.

    In half precision the encoder can overflow, and only the decoder has the host's fallback.
    """
    vae = sd_model.first_stage_model
    dtype = next(vae.parameters()).dtype
    sd_hijack.model_hijack.apply_circular(False)
    try:
        vae.to(torch.float32)
        with torch.no_grad(), without_autocast(devices.device):
            return sd_model.scale_factor * vae.encode(pixels.to(devices.device, torch.float32)).mode()
    finally:
        vae.to(dtype)


# ------------------------------------------------------------------ LoRA networks of the host
def clean_weights(sd_model: Any) -> None:
    """Take every network that a generation left in the weights out again (networks.py:411).

    Raises:
        RunError: a layer cannot be restored.
    """
    networks = lora_networks()
    mapping = getattr(sd_model, "network_layer_mapping", {})
    patched = [layer for layer in mapping.values() if getattr(layer, "network_current_names", ())]
    if not patched or networks is None:
        return
    networks.load_networks([])  # also takes back the embeddings that came with a network
    with torch.no_grad():  # the host restores outside of it, which fails on parameters that are being trained
        for layer in patched:
            networks.network_apply_weights(layer)
    if any(getattr(layer, "network_current_names", ()) for layer in patched):
        raise RunError(
            "A LoRA of the last picture could not be taken out of the checkpoint; load the checkpoint again."
        )


def _own_parameters(requests: Sequence[DrawRequest], tag: str) -> dict[str, Any]:
    """The WebUI's own parameters of pictures that are drawn together; of one variation seed it would count up."""
    found = dict(requests[0].more)
    if "override_settings" in found:
        found["override_settings"] = dict(found["override_settings"])
    if "subseed" in found:
        found["subseed"] = [found["subseed"]] * len(requests)
    if "hr_prompt" in found:
        found["hr_prompt"] = [found["hr_prompt"] + tag] * len(requests)
    return found


@contextmanager
def _known_network(lora: LoraUse | None) -> Iterator[str]:
    """Make a file known under its name for one picture; gives the prompt's tag."""
    networks = lora_networks()
    if lora is None:
        yield ""
        return
    if networks is None:
        raise InputError("The WebUI's Lora extension is switched off, so no LoRA can be drawn; switch it on.")
    if lora.lbw and not shared.opts.data.get("lora_train_block_weights", True):
        raise InputError("Block weights in prompts are switched off; switch them on in Settings, LoRA Train.")
    name = lora.path.stem
    known = networks.available_networks.get(name)
    if known is None or Path(known.filename) != lora.path:
        import network  # of the Lora extension

        entry = network.NetworkOnDisk(name, str(lora.path))
        networks.available_networks[name] = networks.available_network_aliases[name] = entry
    try:
        yield lora.tag
    finally:
        if known is None and not _is_within(lora.path, Path(shared.cmd_opts.lora_dir)):
            networks.available_networks.pop(name, None)
            networks.available_network_aliases.pop(name, None)
            networks.networks_in_memory.pop(name, None)


def _remember(network: Any) -> None:
    """Let the host find a network among those that are loaded, from where :func:`clean_weights` took it.

    It reads the file only when it is newer (networks.py:311). One that brings embeddings is left to be read again.
    """
    if network is not None and not network.bundle_embeddings:
        lora_networks().loaded_networks.append(network)


def _loaded(lora: LoraUse | None) -> Any:
    """The network that a picture was drawn with.

    Raises:
        InputError: the host has drawn without it, which it says only in its log (networks.py:320).
    """
    if lora is None:
        return None
    for network in map(original, lora_networks().loaded_networks):
        if network.name == lora.path.stem:
            return network
    raise InputError("The WebUI could not load {path}; its console tells why.", path=lora.path)


def _require_tags(prompt: str) -> None:
    """See that a picture was drawn with every LoRA of its prompt's own tags.

    Raises:
        InputError: as for :func:`_loaded`.
    """
    wanted = {match[2].split(":")[0] for match in TAG.finditer(prompt)}
    networks = lora_networks()
    loaded = {network.name for network in map(original, networks.loaded_networks)} if networks else set()
    if missing := wanted - loaded:
        raise InputError("The WebUI could not load the LoRA {name}; its console tells why.", name=min(missing))


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


@contextmanager
def _kept_prompt_history() -> Iterator[None]:
    """The person's last prompt (params.txt) is not replaced by ours (processing.py:975)."""
    path = Path(paths.data_path) / "params.txt"
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            path.write_bytes(before)
        elif path.is_file():
            os.unlink(path)  # noqa: PTH108


def _script_defaults() -> list[Any]:
    """The values that the always-on scripts have when nobody touched them, as the host's API does."""
    values = [getattr(component, "value", None) for component in scripts.scripts_txt2img.inputs]
    return [0, *values[1:]]
