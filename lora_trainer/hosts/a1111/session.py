"""Holding the model that the WebUI has loaded: the WebUI is left as it was found."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modules import devices, lowvram, paths, scripts, sd_models, shared
from modules.processing import StableDiffusionProcessingTxt2Img, process_images

from lora_trainer.core.errors import CheckpointChanged, InputError, Interrupted, RunError
from lora_trainer.hosts.a1111.checkpoint import (
    chosen_info,
    is_put_away,
    load_chosen,
    loaded_model,
    native_view,
    require_trainable,
)
from lora_trainer.hosts.a1111.gate import Gate
from lora_trainer.hosts.a1111.identity import changed, identity_of, reformatted
from lora_trainer.hosts.a1111.networks import (
    clean_weights,
    known_network,
    loaded_networks,
    own_parameters,
    remember,
    require_tags,
)
from lora_trainer.hosts.a1111.rebuild import reload
from lora_trainer.hosts.base import DrawRequest, LoraUse, ModelRequest
from lora_trainer.model.loaded import LoadedModel

if TYPE_CHECKING:
    from PIL import Image


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

    def __init__(self, request: ModelRequest, flags: Flags, gate: Gate) -> None:
        self._request = request
        self._flags = flags
        self._gate = gate
        self._has_turn = False
        self._progress = (request.work, 0, 0)
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
                raise CheckpointChanged.of(error.message) from error
            self._identity = identity_of(self._sd_model)
            flags.hold(self._sd_model)

    @cached_property
    def model(self) -> LoadedModel:
        """The view; made in a turn when it is first asked for, since drawing does without."""
        if self._has_turn:
            return native_view(self._sd_model, self._request)
        with self.turn():
            return native_view(self._sd_model, self._request)

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
            begun = reload.begun
            images, interrupted = self._drawn(requests, lora)
            if not interrupted or not reload.happened_since(begun) or self._gate.is_held:
                break
        if interrupted or len(images) < len(requests):  # what was interrupted is there, but not finished
            raise Interrupted("The picture was interrupted.")
        return images[: len(requests)]

    def _drawn(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> tuple[list[Image.Image], bool]:
        """Pictures, and whether they were interrupted."""
        request = requests[0]
        if sd_models.select_checkpoint().filename != self._sd_model.sd_checkpoint_info.filename:
            raise changed()  # process_images would load the other one
        with known_network(lora) as tag, _kept_prompt_history():
            remember(self._network)
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
                **own_parameters(requests, tag),
            )
            with contextlib.closing(processing):
                processing.is_api = True  # the page's own fields (seed, sampler) must not stand in for these
                processing.scripts = scripts.scripts_txt2img
                processing.script_args = tuple(_script_defaults())
                with self._gate.job():
                    images = process_images(processing).images
                    interrupted = shared.state.interrupted or shared.state.skipped
            if not interrupted:  # else the tags may not have been read yet
                self._network = loaded_networks(lora)
                require_tags(request.prompt)
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
            if identity_of(self._sd_model) == self._identity:
                clean_weights(self._sd_model)
            if getattr(self._sd_model, "lowvram", False):
                lowvram.send_everything_to_cpu()
                self._sd_model.cond_stage_model.to(devices.cpu)
            devices.torch_gc()

    def _require_same_checkpoint(self) -> None:
        """A switch to a checkpoint of the same shape loads it into the same parameters (sd_models.py:951)."""
        self._bring_back()
        if sd_models.model_data.sd_model is not self._sd_model:
            raise changed()
        now = identity_of(self._sd_model)
        if now != self._identity:
            in_other_form = replace(self._identity, forms=now.forms, numbers=now.numbers)
            raise reformatted() if now.forms != self._identity.forms and now == in_other_form else changed()
        if is_put_away(self._sd_model):
            raise CheckpointChanged("The checkpoint was unloaded; the run goes on when it is loaded again.")

    def _bring_back(self) -> None:
        """Load our checkpoint where it is the chosen one, but a picture has left another in memory."""
        chosen = chosen_info()
        if chosen is None or chosen.filename != self._identity.file:
            return
        try:
            load_chosen()
        except RunError as error:
            raise changed() from error  # so that what is learned is kept

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
        begun = reload.begun
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
            if state.interrupted and not self._gate.wanted and not reload.happened_since(begun):
                self._interrupted = True
            state.job, state.job_no, state.job_count, state.textinfo = "", 0, 0, None
            state.interrupted = False


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
