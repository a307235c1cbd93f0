"""The X/Y/Z plot, as far as axes of extensions meet it (scripts/xyz_grid.py): its cells, without the sheet's legend."""

import csv
import itertools
import logging
import re
from copy import copy

import gradio as gr
import numpy as np
from modules import processing, scripts, sd_models, shared
from modules.processing import Processed
from PIL import Image


def apply_field(field):
    def fun(p, x, xs):
        setattr(p, field, x)

    return fun


def apply_prompt(p, x, xs):
    p.prompt = p.prompt.replace(xs[0], x)


def apply_checkpoint(p, x, xs):
    p.override_settings["sd_model_checkpoint"] = sd_models.get_closet_checkpoint_match(x).name


def format_value(p, opt, x):
    return x


def do_nothing(p, x, xs):
    pass


class AxisOption:
    def __init__(
        self, label, type, apply, format_value=format_value, confirm=None, cost=0.0, choices=None, prepare=None
    ):
        self.label, self.type, self.apply, self.format_value = label, type, apply, format_value
        self.confirm, self.cost, self.choices, self.prepare = confirm, cost, choices, prepare


axis_options = [
    AxisOption("Nothing", str, do_nothing),
    AxisOption("Seed", int, apply_field("seed")),
    AxisOption("Prompt S/R", str, apply_prompt),
    AxisOption("Checkpoint name", str, apply_checkpoint, cost=1.0, choices=lambda: sorted(sd_models.checkpoints_list)),
]
re_range_float = re.compile(
    r"\s*([+-]?\s*\d+(?:.\d*)?)\s*-\s*([+-]?\s*\d+(?:.\d*)?)(?:\s*\(([+-]\d+(?:.\d*)?)\s*\))?\s*"
)


def _words(text):
    return [
        word.strip() for row in csv.reader(text.splitlines(), skipinitialspace=True) for word in row if word.strip()
    ]


def _ranges(words):
    """``0.5-1(+0.25)`` is three numbers."""
    for word in words:
        match = re_range_float.fullmatch(word)
        if match is None:
            yield word
            continue
        start, end, step = float(match[1]), float(match[2]), float(match[3] or 1)
        yield from np.arange(start, end + step, step).tolist()


class Script(scripts.Script):
    def title(self):
        return "X/Y/Z plot"

    def ui(self, is_img2img):
        self.current_axis_options = [x for x in axis_options if type(x) is AxisOption or x.is_img2img == is_img2img]
        names = [option.label for option in self.current_axis_options]
        axes = [(gr.Dropdown(names, type="index"), gr.Textbox(), gr.Dropdown(multiselect=True)) for _ in range(3)]
        rest = [gr.Checkbox() for _ in range(7)]
        return [*itertools.chain(*axes), *rest, gr.Slider(), gr.Checkbox()]

    def run(
        self,
        p,
        x_type,
        x_values,
        x_values_dropdown,
        y_type,
        y_values,
        y_values_dropdown,
        z_type,
        z_values,
        z_values_dropdown,
        draw_legend,
        include_lone_images,
        include_sub_grids,
        no_fixed_seeds,
        vary_seeds_x,
        vary_seeds_y,
        vary_seeds_z,
        margin_size,
        csv_mode,
    ):
        processing.fix_seed(p)

        def process_axis(opt, vals, vals_dropdown):
            if opt.label == "Nothing":
                return [0]
            if opt.choices is not None and not csv_mode:
                found = vals_dropdown
            else:
                found = opt.prepare(vals) if opt.prepare is not None else _words(vals)
            found = [opt.type(x) for x in (_ranges(found) if opt.type is float else found)]
            if opt.confirm:
                opt.confirm(p, found)
            return found

        options = [self.current_axis_options[each or 0] for each in (x_type, y_type, z_type)]
        given = (x_values, x_values_dropdown), (y_values, y_values_dropdown), (z_values, z_values_dropdown)
        axes = [process_axis(opt, *values) for opt, values in zip(options, given, strict=True)]
        outer = sorted(range(3), key=lambda i: (-options[i].cost, -i))  # the costly ones change least often

        def cell(place):
            if shared.state.interrupted or shared.state.stopping_generation:
                return Processed(p, [], p.seed, "")
            pc = copy(p)
            pc.styles = pc.styles[:]
            for opt, values, i in zip(options, axes, place, strict=True):
                opt.apply(pc, values[i], values)
            try:
                return processing.process_images(pc)
            except Exception:
                logging.exception("generating image for xyz plot")
                return Processed(p, [], p.seed, "")

        shared.state.job_count = np.prod([len(values) for values in axes]) * p.n_iter
        done = {}
        for place in itertools.product(*(range(len(axes[i])) for i in outer)):
            at = tuple(place[outer.index(i)] for i in range(3))
            done[at[::-1]] = cell(at)
        cells = [done[at] for at in sorted(done)]
        blank = Image.new("P", (p.width, p.height))
        first = copy(cells[0])
        first.images = [each.images[0] if each.images else blank for each in cells]
        first.infotexts = [each.infotexts[0] if each.images else None for each in cells]
        return first
