"""LoRA files as they should not be: every tool does its work or says why not in one sentence, and its JSON is JSON."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_trainer.cli import main
from lora_trainer.errors import InputError, LoraTrainError
from lora_trainer.network.adapters import file_shapes
from lora_trainer.network.info import info
from lora_trainer.network.lora_file import is_finite, read_lora, require_sd1
from lora_trainer.network.resize import Rule
from lora_trainer.network.tools import Baking, Ingredient, bake_file, merge_files, resize_file
from lora_trainer.plain_json import json_text
from lora_trainer.ui.tool_views import info_report
from lora_trainer.validation.block_norms import LoraFile, heat_csv, heat_map
from tests.network.made import EVERY, KEYS, randn, some_lora, tensors

CASES = Path(__file__).parents[1] / "cases"
Tensors = dict[str, torch.Tensor]


# ------------------------------------------------------------------ damage
def _fill(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor.float(), number)


DAMAGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scalar": lambda t: torch.tensor(0.5),
    "empty": lambda t: torch.zeros(0),
    "no columns": lambda t: torch.zeros(4, 0),
    "two numbers": lambda t: torch.ones(2),
    "one dimension": lambda t: t.reshape(-1),
    "six dimensions": lambda t: t.reshape(*t.shape, *(1 for _ in range(6 - t.ndim))),
    "transposed": lambda t: t.movedim(0, -1) if t.ndim else t,
    "cut": lambda t: t[: len(t) // 2] if t.ndim else t,
    "nan": _fill(math.nan),
    "infinite": _fill(-math.inf),
    "huge": _fill(3e38),
    "huger": lambda t: torch.full_like(t, 1e300, dtype=torch.float64),
    "tiny": _fill(1e-45),
    "zero": _fill(0.0),
    **{
        str(kind): (lambda t, kind=kind: t.to(kind))  # type: ignore[misc]
        for kind in (
            *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64),
            *(torch.int8, torch.uint8, torch.int64, torch.bool),
        )
    },
}
RENAMED: dict[str, Callable[[str], str]] = {
    "dots": lambda name: name.replace("_", "."),
    "in front": lambda name: "lora_unet." + name,
    "no part": lambda name: name.partition(".")[0],
    "no module": lambda name: "." + name.partition(".")[2],
    "peft": lambda name: name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"),
    "diffusers": lambda name: "unet.down_blocks.0.to_q." + name.partition(".")[2].replace("lora_", "lora."),
    "sdxl": lambda name: "lora_te2_text_model_encoder_layers_3_mlp_fc1." + name.partition(".")[2],
    "unknown": lambda name: "lora_transformer_blocks_0_x." + name.partition(".")[2],
    "other letters": lambda name: "汉服 <b>" + name,
}
METADATA = st.dictionaries(
    st.sampled_from(
        [
            "ss_base_model_version",
            "ss_tag_frequency",
            "ss_network_alpha",
            "lora_train_made_from",
            "modelspec.title",
            "x",
        ]
    ),
    st.sampled_from(
        [
            *("sd_v1", "sdxl_base_v1-0", "sdxl\x00", "", "[NaN]", '{"a": Infinity}', "[1e999]", '{"\\ud800": 1}'),
            *('["\\udfff"]', "[" * 5000, '{"a":' * 300 + "1" + "}" * 300, "[[]", "{} x", "NaN", '{"a": {"b": null}}'),
        ]
    ),
    max_size=3,
)
STARTS = [
    lambda: some_lora(),
    lambda: some_lora(dtype=torch.float16),
    lambda: tensors({f"lora_unet_mid_block_attentions_0_{n}": parts for n, parts in enumerate(EVERY.values())}),
    lambda: tensors({KEYS[1]: {**EVERY["linear"], "dora_scale": randn(1, 6)}}),
    lambda: tensors({KEYS[1]: {"on_input": torch.tensor(True), "weight": randn(6)}}),
    lambda: tensors({KEYS[1]: {"oft_blocks": randn(2, 4, 4), "alpha": torch.tensor(1.0)}}),
    lambda: tensors({KEYS[1]: {f"{n}.weight": randn(6, 6) for n in ("a1", "a2", "b1", "b2")}}),
    lambda: {**some_lora(), "bundle_emb.word.string_to_param.*": randn(2, 8)},
]


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[Tensors, dict[str, str]]:
    """A LoRA of any kind in which a few tensors are of another shape, type or name, or gone."""
    made: Tensors = draw(st.sampled_from(STARTS))()
    for _ in range(draw(st.integers(0, 3))):
        if not made:
            break
        name = draw(st.sampled_from(sorted(made)))
        tensor = made.pop(name)
        what = draw(st.sampled_from([*DAMAGE, *RENAMED, "gone"]))
        if what in RENAMED:
            made[RENAMED[what](name)] = tensor
        elif what != "gone":
            made[name] = DAMAGE[what](tensor).contiguous()
    return made, draw(METADATA)


def attempts(path: Path, other: Path, out: Path) -> list[Callable[[], Any]]:
    """Everything that is done with a LoRA file without a checkpoint."""
    presets = {"lbw": "MIDD"} if path.stem == "a" else {}
    return [
        lambda: info(path),
        lambda: (
            info_report(info(path), {}, lambda text, **values: text.format(**values))
            if "problem" not in info(path)
            else ""
        ),
        lambda: bake_file(path, out / "baked.safetensors", Baking(0.5, 0.7, **presets)).to_dict(),
        lambda: bake_file(path, out / "scaled.safetensors", Baking(2.0, -1.0, "OUTD")).to_dict(),
        lambda: resize_file(path, out / "resized.safetensors", Rule(2)).to_dict(),
        lambda: resize_file(path, out / "kept.safetensors", Rule(None, None, "sv_fro", 0.9), "fp16").to_dict(),
        lambda: merge_files([Ingredient(path), Ingredient(other)], out / "merged.safetensors").to_dict(),
        lambda: merge_files([Ingredient(other), Ingredient(path, 0.3)], out / "ranked.safetensors", 2).to_dict(),
        lambda: heat_map("a", [LoraFile(path, "epoch 1"), LoraFile(other, "epoch 2")]),
        lambda: heat_csv(heat_map("a", [LoraFile(path, "epoch 1")])),
        lambda: require_sd1(path),
        lambda: [vars(shape) for shape in file_shapes(read_lora(path)).values()],
    ]


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text.encode("utf-8"), parse_constant=refuse)


def use(made: Tensors, metadata: dict[str, str]) -> None:
    """Do everything with a file; what is written must be finite, what is answered JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(made, folder / "a.safetensors", metadata)
        save_file(some_lora(3, 1.0, seed=9), folder / "b.safetensors")
        for attempt in attempts(folder / "a.safetensors", folder / "b.safetensors", folder):
            try:
                strict(json_text(attempt()))
            except LoraTrainError as error:
                assert "\n" not in str(error).strip()
                strict(json_text({"error": str(error)}))
        for path in folder.glob("*.safetensors"):
            if path.stem not in ("a", "b"):
                assert all(map(is_finite, read_lora(path).values()))


@given(damaged_files())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_tool_fails_at_a_damaged_file_without_a_sentence(made: tuple[Tensors, dict[str, str]]) -> None:
    use(*made)
