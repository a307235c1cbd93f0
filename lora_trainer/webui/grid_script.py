"""The script *LoRA Train grid* of txt2img: a run's epoch × weight grid with what is set on that page.

Its pictures are those of the tab's grid, on disk under the same names, so what one has drawn the other finds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_models, shared
from modules.processing import Processed, fix_seed
from PIL import Image

from lora_trainer.config import parsing as lists
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.i18n import translator
from lora_trainer.core.messages import Message
from lora_trainer.hosts.a1111 import settings as host
from lora_trainer.hosts.base import DrawRequest
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.blocks.lora_tag import TAG
from lora_trainer.runs.run import Run
from lora_trainer.validation.grid.cells import Drawn, count_batches
from lora_trainer.validation.grid.document import GridDocument, grid_folder
from lora_trainer.validation.grid.options import GridOptions
from lora_trainer.validation.grid.plan import GridPlan
from lora_trainer.webui.xyz_axes import AxisError

_HIRES = (
    *("denoising_strength", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
    *("hr_sampler_name", "hr_scheduler"),
)
_OPTIONAL = ("tiling", "restore_faces", "eta", "s_min_uncond", "s_churn", "s_tmax", "s_tmin", "s_noise")
"""Fields of ``p`` that are ``None`` where the WebUI's settings count."""
_BUILT_IN = ("Seed", "Sampler", "Refiner")
"""Always active scripts whose values stand in ``p`` itself."""


def draw(p: Any, jobs: Jobs, name: str, epochs: str, weights: str, together: float, numbers: bool) -> Processed:
    """Draw a run's grid with the prompt, size, sampler, steps, scale, seeds, hires fix and overrides of ``p``.

    Args:
        p: what txt2img would draw; always active scripts of extensions have their defaults, which is said.
        jobs: knows the runs.
        name: of the run.
        epochs: as in the tab, e.g. ``every 2``.
        weights: with commas between.
        together: pictures drawn at once.
        numbers: measure losses and pictures, too.

    Raises:
        AxisError: one sentence in the person's language.
    """
    try:
        run = jobs.grids.require_none(name or "")
        request, seeds = _request(p, run)
        options = GridOptions(epochs, lists.weights(weights), seeds, [request.prompt], numbers, int(together))
        if names := _not_used(p):
            without = InputError(
                "The grid was drawn without {names}; the X/Y/Z plot draws with it.", names=", ".join(names)
            )
            p.comment(host.sentence(without))
        hold = jobs.host.session_of_script  # type: ignore[attr-defined]  # only in this host
        return _shown(
            p,
            jobs.grids.draw_now(run.name, options, request, hold, lambda plan: _announce(plan, run, options.together)),
        )
    except LoraTrainError as error:
        raise AxisError(host.sentence(error)) from error


def _announce(plan: GridPlan, run: Run, together: int) -> None:
    """Tell the page's progress bar and the console's how much is drawn; hires fix doubles it by itself."""
    cells = [plan.cell(*place) for place in plan.places()]
    shared.state.job_count = count_batches(cells, Drawn(grid_folder(run) / "cells"), together)
    shared.total_tqdm.updateTotal(shared.state.job_count * plan.request.steps)


def _shown(p: Any, document: GridDocument) -> Processed:
    """The sheets, then the cells, for the page's gallery."""
    cells = [cell["picture"] for cell in document["cells"] if cell["picture"]]
    images = [_open(path) for path in (*document["sheets"], *cells)]
    texts = [str(image.info.get("parameters", "")) for image in images]
    verdict = document["verdict"]
    for sentence in verdict["sentences"] if verdict else []:
        p.comment(Message.from_dict(sentence).text(translator(host.language())))
    first = len(document["sheets"])
    seed = document["seeds"][0]
    return Processed(p, images, seed, texts[0] if texts else "", infotexts=texts, index_of_first_image=first)


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def _request(p: Any, run: Run) -> tuple[DrawRequest, list[int]]:
    """What the page draws, without tags of the run's own files; and a seed for each picture of its batches."""
    fix_seed(p)
    names = {Path(entry["path"]).stem for entry in run.manifest["files"]}
    prompt = shared.prompt_styles.apply_styles_to_prompt(p.prompt, p.styles)
    negative = shared.prompt_styles.apply_negative_styles_to_prompt(p.negative_prompt, p.styles)

    def without_tags(text: str) -> str:
        return TAG.sub(lambda match: "" if match[2].split(":")[0] in names else match[0], text).strip()

    prompt = without_tags(prompt)
    scheduler = getattr(p, "scheduler", None)
    # the host takes a sampler's name with its scheduler's behind it (sd_samplers.py:82)
    sampler = f"{p.sampler_name} {scheduler}" if scheduler not in (None, "", "Automatic") else p.sampler_name
    count = p.n_iter * p.batch_size
    if count > 1 and p.subseed_strength > 0:
        raise InputError(
            "With a variation seed the grid draws one picture a cell; set batch count and batch size to 1."
        )
    more = tuple(sorted(_more(p, own=without_tags).items()))
    request = DrawRequest(prompt, negative, p.width, p.height, p.steps, p.cfg_scale, sampler, more=more)
    return request, [int(p.seed) + i for i in range(count)]


def _more(p: Any, own: Callable[[str], str]) -> dict[str, Any]:
    """What else of ``p`` changes its pictures: the WebUI's parameters by name.

    Raises:
        InputError: something would load another checkpoint, on which the run's LoRA is not compared.
    """
    _require_one_checkpoint(p)
    found = {name: getattr(p, name) for name in _OPTIONAL if getattr(p, name, None) is not None}
    if p.subseed_strength > 0:
        found |= {"subseed": int(p.subseed), "subseed_strength": p.subseed_strength}
    if p.seed_resize_from_w > 0 and p.seed_resize_from_h > 0:
        found |= {name: getattr(p, name) for name in ("seed_resize_from_w", "seed_resize_from_h")}
    if p.enable_hr:
        found |= {"enable_hr": True, **{name: getattr(p, name) for name in _HIRES}}
        styles = shared.prompt_styles
        if p.hr_prompt:
            found["hr_prompt"] = own(styles.apply_styles_to_prompt(p.hr_prompt, p.styles))
        if p.hr_negative_prompt:
            found["hr_negative_prompt"] = styles.apply_negative_styles_to_prompt(p.hr_negative_prompt, p.styles)
    overrides = {key: value for key, value in p.override_settings.items() if key != "sd_model_checkpoint"}
    if overrides:
        found["override_settings"] = tuple(sorted(overrides.items()))
    return found


def _require_one_checkpoint(p: Any) -> None:
    """Raises :class:`InputError` when a picture of ``p`` needs another checkpoint than the loaded one."""
    _require_loaded(getattr(p, "refiner_checkpoint", None), "a refiner")
    _require_loaded(p.hr_checkpoint_name if p.enable_hr else None, "another checkpoint for hires fix")
    _require_loaded(p.override_settings.get("sd_model_checkpoint"), "a checkpoint in its override settings")


def _require_loaded(name: str | None, kind: str) -> None:
    if name in (None, "", "None", "Use same checkpoint"):
        return
    known = sd_models.get_closet_checkpoint_match(name)
    if known is None or known.filename != sd_models.model_data.sd_model.sd_checkpoint_info.filename:
        raise InputError(
            "LoRA Train grid cannot draw with {kind}, which loads another checkpoint; switch it off, or use the X/Y/Z "
            "plot with the axes LoRA run epoch and LoRA weight.",
            kind=kind,
        )


def _not_used(p: Any) -> list[str]:
    """Always active scripts of extensions that are switched on in the page, but are not by default."""
    runner, given = p.scripts, p.script_args or ()
    found = []
    for script in getattr(runner, "alwayson_scripts", ()):
        values = given[script.args_from : script.args_to]
        usual = [getattr(component, "value", None) for component in runner.inputs[script.args_from : script.args_to]]
        on = any(now is True and before is False for now, before in zip(values, usual, strict=False))
        if script.title() not in _BUILT_IN and (
            on or any(getattr(value, "enabled", False) is True for value in values)
        ):
            found.append(str(script.title()))
    return found
