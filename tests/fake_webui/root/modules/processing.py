"""How txt2img draws (processing.py): the order of calls is the WebUI's, the sampler is Euler's method on few steps."""

import os
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from modules import devices, extra_networks, paths, script_callbacks, sd_models, sd_vae, shared
from modules.sd_hijack import model_hijack
from modules.shared import opts, state


class InterruptedException(Exception):
    """Interrupt or Skip was pressed within a picture (sd_samplers_common.py:189)."""


@dataclass(repr=False)
class StableDiffusionProcessing:
    sd_model: object = None
    outpath_samples: str = None
    outpath_grids: str = None
    prompt: str = ""
    prompt_for_display: str = None
    negative_prompt: str = ""
    styles: list[str] = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    seed_enable_extras: bool = True
    sampler_name: str = None
    scheduler: str = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool = None
    tiling: bool = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] = None
    eta: float = None
    denoising_strength: float = None
    s_min_uncond: float = None
    s_churn: float = None
    s_tmax: float = None
    s_tmin: float = None
    s_noise: float = None
    override_settings: dict[str, Any] = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str = None
    refiner_switch_at: float = None
    disable_extra_networks: bool = False

    scripts: Any = field(default=None, init=False)
    script_args: Any = field(default=(), init=False)
    comments: dict = None
    is_hr_pass: bool = field(default=False, init=False)
    c: Any = field(default=None, init=False)
    uc: Any = field(default=None, init=False)
    all_prompts: list = field(default=None, init=False)
    all_negative_prompts: list = field(default=None, init=False)
    all_seeds: list = field(default=None, init=False)
    all_subseeds: list = field(default=None, init=False)
    iteration: int = field(default=0, init=False)
    main_prompt: str = field(default=None, init=False)
    main_negative_prompt: str = field(default=None, init=False)
    prompts: list = field(default=None, init=False)
    negative_prompts: list = field(default=None, init=False)
    seeds: list = field(default=None, init=False)
    subseeds: list = field(default=None, init=False)
    extra_network_data: dict = field(default=None, init=False)
    is_api: bool = field(default=False, init=False)

    cached_uc = [None, None]
    cached_c = [None, None]

    def __post_init__(self):
        self.comments = {}
        self.styles = self.styles or []
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.cached_uc = StableDiffusionProcessing.cached_uc
        self.cached_c = StableDiffusionProcessing.cached_c

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.c = self.uc = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        pass

    def setup_prompts(self):
        count = self.batch_size * self.n_iter
        prompts = self.prompt if isinstance(self.prompt, list) else count * [self.prompt]
        styles = shared.prompt_styles
        self.all_prompts = [styles.apply_styles_to_prompt(prompt, self.styles) for prompt in prompts]
        negative = styles.apply_negative_styles_to_prompt(self.negative_prompt, self.styles)
        self.all_negative_prompts = [negative] * len(self.all_prompts)
        self.main_prompt, self.main_negative_prompt = self.all_prompts[0], self.all_negative_prompts[0]

    def parse_extra_network_prompts(self):
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def _conds(self, required_prompts, caches, extra_network_data):
        """The last prompts' states are kept by their text, their tags and what else changes them (line 451)."""
        key = (required_prompts, opts.CLIP_stop_at_last_layers, shared.sd_model.sd_checkpoint_info, extra_network_data)
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        caches[0][:] = key, shared.sd_model.get_learned_conditioning(required_prompts)
        return caches[0][1]

    def setup_conds(self):
        self.uc = self._conds(self.negative_prompts, [self.cached_uc], self.extra_network_data)
        self.c = self._conds(self.prompts, [self.cached_c], self.extra_network_data)


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    denoising_strength: float = 0.75
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str = None
    hr_sampler_name: str = None
    hr_scheduler: str = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    all_hr_prompts: list = field(default=None, init=False)
    all_hr_negative_prompts: list = field(default=None, init=False)
    hr_prompts: list = field(default=None, init=False)
    hr_negative_prompts: list = field(default=None, init=False)
    hr_extra_network_data: dict = field(default=None, init=False)
    cached_hr_uc = [None, None]
    cached_hr_c = [None, None]

    def setup_prompts(self):
        super().setup_prompts()
        if not self.enable_hr:
            return
        self.hr_prompt = self.hr_prompt or self.prompt
        self.hr_negative_prompt = self.hr_negative_prompt or self.negative_prompt
        count, styles = self.batch_size * self.n_iter, shared.prompt_styles
        prompts = self.hr_prompt if isinstance(self.hr_prompt, list) else count * [self.hr_prompt]
        self.all_hr_prompts = [styles.apply_styles_to_prompt(prompt, self.styles) for prompt in prompts]
        negative = styles.apply_negative_styles_to_prompt(self.hr_negative_prompt, self.styles)
        self.all_hr_negative_prompts = [negative] * len(prompts)

    def parse_extra_network_prompts(self):
        super().parse_extra_network_prompts()
        if not self.enable_hr:
            return
        batch = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
        self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[batch])
        self.hr_negative_prompts = self.all_hr_negative_prompts[batch]

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        samples = sampled(self, noise_of(self, self.width, self.height), conditioning, unconditional_conditioning)
        return self._sample_hr(samples) if self.enable_hr else samples

    def _sample_hr(self, samples):
        if state.interrupted:
            return samples
        self.is_hr_pass = True
        state.nextjob()
        wide, high = int(self.width * self.hr_scale), int(self.height * self.hr_scale)
        samples = torch.nn.functional.interpolate(samples, size=(high // 8, wide // 8))
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        uc = self._conds(self.hr_negative_prompts, [self.cached_hr_uc, self.cached_uc], self.hr_extra_network_data)
        c = self._conds(self.hr_prompts, [self.cached_hr_c, self.cached_c], self.hr_extra_network_data)
        steps = self.hr_second_pass_steps or self.steps
        samples = sampled(self, noise_of(self, wide, high), c, uc, samples, self.denoising_strength, steps)
        self.is_hr_pass = False
        return samples


class Processed:
    def __init__(
        self,
        p,
        images_list,
        seed=-1,
        info="",
        subseed=None,
        all_prompts=None,
        all_negative_prompts=None,
        all_seeds=None,
        all_subseeds=None,
        index_of_first_image=0,
        infotexts=None,
        comments="",
    ):
        self.images, self.prompt, self.seed, self.info = images_list, p.prompt, seed, info
        self.width, self.height = p.width, p.height
        self.comments = comments or "".join(f"{comment}\n" for comment in p.comments)
        self.index_of_first_image = index_of_first_image
        self.infotexts = infotexts or [info] * len(images_list)


def get_fixed_seed(seed):
    return random.randrange(4294967294) if seed in (None, "", -1) else seed


def fix_seed(p):
    p.seed, p.subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)


def noise_of(p, width, height):
    """Of each seed of the batch."""
    shape = 4, height // 8, width // 8
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in p.seeds])


def sampled(p, noise, c, uc, start=None, strength=1.0, steps=None):
    """Euler's method on the noise levels of Karras et al. 2022, equation 3; each step may be interrupted after it."""
    model, steps = p.sd_model, steps or p.steps
    alphas = model.alphas_cumprod.float()
    levels = ((1 - alphas) / alphas).sqrt()
    times = torch.linspace(int(999 * strength), 0, steps).round().long()
    sigmas = torch.cat([levels[times], torch.zeros(1)])
    x = noise * sigmas[0] + (0 if start is None else start)
    state.sampling_steps, state.sampling_step = steps, 0
    for step in range(steps):
        script_callbacks.cfg_denoiser_callback(
            script_callbacks.CFGDenoiserParams(x, None, sigmas[step], state.sampling_step, steps, c, uc)
        )
        if state.interrupted or state.skipped:
            raise InterruptedException
        scaled = x / (sigmas[step] ** 2 + 1).sqrt()
        time = times[step].expand(len(x))
        eps, eps_uc = (model.model.diffusion_model(scaled, time, context=states) for states in (c, uc))
        x = x + (eps_uc + p.cfg_scale * (eps - eps_uc)) * (sigmas[step + 1] - sigmas[step])
        state.sampling_step = step
    return x


def create_infotext(
    p,
    all_prompts,
    all_seeds,
    all_subseeds,
    comments=None,
    iteration=0,
    position_in_batch=0,
    use_main_prompt=False,
    index=None,
    all_negative_prompts=None,
):
    if use_main_prompt:
        index = 0
    elif index is None:
        index = position_in_batch + iteration * p.batch_size
    negative_prompt = (
        p.main_negative_prompt if use_main_prompt else (all_negative_prompts or p.all_negative_prompts)[index]
    )
    generation_params = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "CFG scale": p.cfg_scale,
        "Seed": p.all_seeds[0] if use_main_prompt else all_seeds[index],
        "Size": f"{p.width}x{p.height}",
        "Model hash": p.sd_model.sd_model_hash,
        "Model": p.sd_model.sd_checkpoint_info.name_for_extra,
        "Clip skip": opts.CLIP_stop_at_last_layers if opts.CLIP_stop_at_last_layers > 1 else None,
        **p.extra_generation_params,
    }
    for key, value in generation_params.items():
        if isinstance(value, list):
            generation_params[key] = value[index]
        elif callable(value):
            generation_params[key] = value(**locals())
    quoted = {k: f'"{v}"' if set(str(v)) & set(",:\n") else v for k, v in generation_params.items() if v is not None}
    text = p.main_prompt if use_main_prompt else all_prompts[index]
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{text}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in quoted.items())


def process_images(p):
    if p.scripts is not None:
        p.scripts.before_process(p)
    stored_opts = {
        k: opts.data[k] if k in opts.data else opts.get_default(k) for k in p.override_settings if k in opts.data
    }
    try:
        if sd_models.checkpoint_aliases.get(p.override_settings.get("sd_model_checkpoint")) is None:
            p.override_settings.pop("sd_model_checkpoint", None)
            sd_models.reload_model_weights()
        for k, v in p.override_settings.items():
            opts.set(k, v, is_api=True, run_callbacks=False)
            if k == "sd_model_checkpoint":
                sd_models.reload_model_weights()
        return process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for k, v in stored_opts.items():
                setattr(opts, k, v)


def process_images_inner(p):
    if isinstance(p.prompt, list):
        assert len(p.prompt) > 0
    seed, subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    p.sd_vae_name = sd_vae.get_loaded_vae_name()
    model_hijack.apply_circular(p.tiling)
    model_hijack.comments.clear()
    p.setup_prompts()
    count = range(len(p.all_prompts))
    p.all_seeds = seed if isinstance(seed, list) else [int(seed) + (i if p.subseed_strength == 0 else 0) for i in count]
    p.all_subseeds = subseed if isinstance(subseed, list) else [int(subseed) + i for i in count]
    infotexts, output_images = [], []
    with torch.no_grad():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        if state.job_count == -1:
            state.job_count = p.n_iter
        for n in range(p.n_iter):
            p.iteration = n
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            sd_models.reload_model_weights()
            batch = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.prompts, p.negative_prompts = p.all_prompts[batch], p.all_negative_prompts[batch]
            p.seeds, p.subseeds = p.all_seeds[batch], p.all_subseeds[batch]
            if len(p.prompts) == 0:
                break
            _draw_batch(p, n, infotexts, output_images)
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    devices.torch_gc()
    return Processed(
        p, output_images, p.all_seeds[0], infotexts[0] if infotexts else "", infotexts=infotexts, all_seeds=p.all_seeds
    )


def _draw_batch(p, n, infotexts, output_images):
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    p.setup_conds()
    if n == 0 and not shared.cmd_opts.no_prompt_history:
        with open(os.path.join(paths.data_path, "params.txt"), "w", encoding="utf8") as file:
            file.write(create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, use_main_prompt=True))
    for comment in model_hijack.comments:
        p.comment(comment)
    try:
        samples = p.sample(p.c, p.uc, p.seeds, p.subseeds, p.subseed_strength, p.prompts)
    except InterruptedException:
        samples = torch.zeros(len(p.prompts), 4, p.height // 8, p.width // 8)
    decoded = p.sd_model.first_stage_model.decode(samples / p.sd_model.scale_factor)
    state.nextjob()
    p.prompts = p.all_prompts[n * p.batch_size : (n + 1) * p.batch_size]  # with their tags again (line 1018)
    for i, picture in enumerate(decoded.clamp(-1, 1).add(1).div(2)):
        image = Image.fromarray((255.0 * np.moveaxis(picture.numpy(), 0, 2)).astype(np.uint8))
        text = create_infotext(p, p.prompts, p.seeds, p.subseeds, index=i, all_negative_prompts=p.negative_prompts)
        image.info["parameters"] = text
        infotexts.append(text)
        output_images.append(image)
