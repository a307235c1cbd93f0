"""The script *LoRA Train grid* of txt2img: a run's epoch × weight grid with what is set on that page.

Its pictures are those of the tab's grid, on disk under the same names, so what one has drawn the other finds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules import shared
from modules.processing import Processed, fix_seed
from PIL import Image

from lora_trainer import lists
from lora_trainer.errors import InputError, Interrupted, LoraTrainError
from lora_trainer.hosts import a1111_lora as host
from lora_trainer.hosts.a1111_axes import AxisError
from lora_trainer.hosts.base import DrawRequest
from lora_trainer.i18n import filled, translator
from lora_trainer.jobs import Jobs
from lora_trainer.network.lora_tag import TAG
from lora_trainer.runs import Run
from lora_trainer.validation.grid import GridOptions, draw_grid, grid_folder, plan_grid, read_document
from lora_trainer.validation.measure import measure_grid


def draw(p: Any, jobs: Jobs, name: str, epochs: str, weights: str, together: float, numbers: bool) -> Processed:
    """Draw a run's grid with the prompt, size, sampler, steps, scale and seeds of ``p``.

    Args:
        p: what txt2img would draw; of its scripts only the always active ones have an effect.
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
        run = jobs.settled(name or "")
        if jobs.drawing.find(run):
            raise InputError("A grid of {name} is being drawn already.", name=name)
        request, seeds = _request(p, run)
        options = GridOptions(lists.weights(weights), [request.prompt], epochs, seeds, int(together), numbers)
        return _shown(p, _drawn(jobs, run, options, request))
    except LoraTrainError as error:
        raise AxisError(host.sentence(error)) from error


def _drawn(jobs: Jobs, run: Run, options: GridOptions, request: DrawRequest) -> dict[str, Any]:
    """The grid's document; of an interrupted one as far as it came."""
    config = run.config()
    plan = replace(plan_grid(run, options, config), request=replace(request, prompt=""))
    folder = grid_folder(run)
    shared.state.job_count = len(plan.places())
    shared.total_tqdm.updateTotal(len(plan.places()) * request.steps // max(1, options.together))
    try:
        with jobs.host.session_of_script(config) as session:  # type: ignore[attr-defined]  # only in this host
            plan = plan.on(jobs.host.check(config), session.draw_settings())
            document = draw_grid(plan, session, folder, together=options.together)
            if options.numbers:
                measure_grid(document, jobs.host, session, config, folder, fingerprint=run.fingerprint)
    except Interrupted:
        return read_document(run)
    done = {"state": "done", "done": len(plan.places()), "of": len(plan.places()), "message": ""}
    place = {"path": document["sheets"][0], "document": str(folder / "grid.json"), "finished": time.time()}
    run.update(grid={**done, **place}, now=True)
    return document


def _shown(p: Any, document: dict[str, Any]) -> Processed:
    """The sheets, then the cells, for the page's gallery."""
    cells = [cell["picture"] for cell in document["cells"] if cell["picture"]]
    images = [_open(path) for path in (*document["sheets"], *cells)]
    texts = [str(image.info.get("parameters", "")) for image in images]
    for sentence in (document.get("verdict") or {}).get("sentences", []):
        p.comment(filled(sentence, translator(host.language())))
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
    prompt = TAG.sub(lambda match: "" if match[2].split(":")[0] in names else match[0], prompt).strip()
    scheduler = getattr(p, "scheduler", None)
    # the host takes a sampler's name with its scheduler's behind it (sd_samplers.py:82)
    sampler = f"{p.sampler_name} {scheduler}" if scheduler not in (None, "", "Automatic") else p.sampler_name
    request = DrawRequest(prompt, negative, p.width, p.height, p.steps, p.cfg_scale, sampler)
    return request, [int(p.seed) + i for i in range(p.n_iter * p.batch_size)]
