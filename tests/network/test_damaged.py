"""LoRA files as they should not be: every tool does its work or says why not in one sentence, and its JSON is JSON."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_trainer.cli.main import main
from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.core.plain_json import json_text
from lora_trainer.network.adapters import file_shapes
from lora_trainer.network.lora_file import read_lora, require_sd1
from lora_trainer.network.ops.files import Baking, Ingredient, bake_file, merge_files, resize_file
from lora_trainer.network.ops.info import info
from lora_trainer.network.ops.resize import Rule
from lora_trainer.network.types.base import is_finite
from lora_trainer.runs.saved_files import LoraFile
from lora_trainer.training.preparation import begun_with
from lora_trainer.ui.html.lora_files import info_report
from lora_trainer.validation.blocks.norms import heat_csv, heat_map
from tests.helpers import CASES, CHECKPOINT
from tests.network.made import EVERY, KEYS, randn, some_lora, tensors

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
        folder, sentences = Path(name), []
        save_file(made, folder / "a.safetensors", metadata)
        save_file(some_lora(3, 1.0, seed=9), folder / "b.safetensors")
        for attempt in attempts(folder / "a.safetensors", folder / "b.safetensors", folder):
            try:
                strict(json_text(attempt()))
            except LoraTrainError as error:
                said = str(error)
                strict(json_text({"error": said}))
                sentences.append(said)
        for path in folder.glob("*.safetensors"):
            if path.stem not in ("a", "b"):
                assert all(map(is_finite, read_lora(path).values()))
        assert not any("\n" in said.strip() for said in sentences)


@given(damaged_files())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_tool_fails_at_a_damaged_file_without_a_sentence(made: tuple[Tensors, dict[str, str]]) -> None:
    use(*made)


# ------------------------------------------------------------------ the kinds one by one
def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_metadata_of_other_programs_with_nan_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "lora", "info", CASES / "info-nan-metadata" / "nan-metadata.safetensors", "--json")
    assert code == 0
    assert strict(out)["metadata"]["ss_datasets"] == [{"bucket_info": {"buckets": {}, "mean_img_ar_error": None}}]


@pytest.mark.parametrize("name", ["alpha2", "deep"])
def test_odd_numbers_and_deep_metadata_are_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = CASES / "info-odd-alpha" / f"{name}.safetensors"
    assert cli(capsys, "lora", "info", path)[0] == 0
    found = strict(cli(capsys, "lora", "info", path, "--json")[1])
    assert ("damaged" in found.get("problem", "")) == (name == "alpha2")


@pytest.mark.parametrize("half", ['{"\\ud800": {"\\udfff": 1}}', '["\\udc80"]'])
def test_half_a_character_in_metadata_is_printed(half: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_lora(), path, {"ss_tag_frequency": half})
    assert "\ufffd" in cli(capsys, "lora", "info", path)[1]
    assert "\ufffd" in str(strict(cli(capsys, "lora", "info", path, "--json")[1])["metadata"])


@pytest.mark.parametrize("rule", [["--rank", "2"], ["--sv-fro", "0.9"], ["--sv-ratio", "3"], ["--sv-cumulative", "1"]])
def test_weights_that_are_no_numbers_are_told(
    rule: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = CASES / "resize-nan" / "nan.safetensors"
    code, _, err = cli(capsys, "lora", "resize", source, *rule, "--output", tmp_path / "out.safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert "no numbers (NaN or infinity)" in err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight", "alpha"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_every_tool_says_which_module_has_no_numbers(part: str, number: float, tmp_path: Path) -> None:
    made = some_lora()
    made[f"{KEYS[2]}.{part}"].reshape(-1)[0] = number
    path = tmp_path / "a.safetensors"
    save_file(made, path)
    assert KEYS[2] in info(path)["problem"]
    for attempt in (
        lambda: bake_file(path, tmp_path / "b.safetensors", Baking(0.5, 0.5)),
        lambda: merge_files([Ingredient(path, 0.5)], tmp_path / "b.safetensors"),
        lambda: resize_file(path, tmp_path / "b.safetensors", Rule(2)),
        lambda: begun_with(path),
    ):
        with pytest.raises(InputError, match=f"{KEYS[2]} has weights that are no numbers"):
            attempt()
    without = bake_file(path, tmp_path / "c.safetensors", Baking(lbw="1,1,1,1,1,1,1,0,1,1,1,1,1,1,1,1,1"))
    assert without.facts["dropped"] == 1


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_weights_are_used_by_all_tools(kind: torch.dtype, tmp_path: Path) -> None:
    made = {name: t if name.endswith("alpha") else (t / 8).to(kind) for name, t in some_lora().items()}
    path = tmp_path / "a.safetensors"
    save_file(made, path)
    bake_file(path, tmp_path / "b.safetensors", Baking(0.5, 0.7))
    baked = read_lora(tmp_path / "b.safetensors")
    assert all(baked[name].float().equal(t.float()) for name, t in made.items() if not name.endswith("alpha"))
    assert merge_files([Ingredient(path)] * 2, tmp_path / "c.safetensors").facts["error"] < 1e-6
    assert resize_file(path, tmp_path / "d.safetensors", Rule(2)).facts["ranks"] == [2]


def test_the_case_of_eight_bits_is_baked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert cli(capsys, "blocks", "bake", CASES / "bake-fp8" / "fp8.safetensors", "--unet", 0.7, "--output", out)[0] == 0
    assert len(read_lora(out)) == 6


@pytest.mark.parametrize("kind", ["C64", "F4", "F6_E2M3", "X9"])
def test_types_that_nothing_can_be_computed_with_are_one_sentence(kind: str, tmp_path: Path) -> None:
    header = {f"{KEYS[0]}.lora_down.weight": {"dtype": kind, "shape": [2, 4], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(InputError, match=r"cannot be computed with here|damaged or not a safetensors file"):
        info(path)


# ------------------------------------------------------------------ other programs' formats
DIFFUSERS = [
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    "down_blocks.0.attentions.0.proj_in.lora_linear_layer.up.weight",
    "base_model.model.down_blocks.0.attentions.0.proj_in.lora_B.default.weight",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "transformer.x.0.lora_magnitude_vector",
]
DOTTED = [
    "lora_unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_down.weight",
    "unet.down_blocks.0.attentions.0.proj_in.lora_up.weight",
    "diffusion_model.input_blocks.1.1.proj_in.lora_down.weight",
    "diffusion_model.input_blocks.1.1.proj_in.alpha",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.diff",
    "clip_l.text_model.encoder.layers.0.mlp.fc1.hada_w1_a",
    "diffusion_model.middle_block.1.proj_in.lokr_w2",
    "lora_te1.text_model.encoder.layers.0.mlp.fc1.dora_scale",
]


@pytest.mark.parametrize(
    ("name", "words"),
    [*((name, "names of diffusers and PEFT") for name in DIFFUSERS), *((n, "OneTrainer and ComfyUI") for n in DOTTED)],
)
def test_a_lora_of_another_program_is_called_what_it_is(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(4, 4)}, path)
    assert words in info(path)["problem"]
    assert cli(capsys, "lora", "info", path)[0] == 0
    for arguments in (
        ["lora", "resize", path, "--rank", 2, "--output", tmp_path / "b.safetensors"],
        ["lora", "merge", path, "--output", tmp_path / "b.safetensors"],
        ["blocks", "bake", path, "--weight", 0.5],
        ["blocks", "show", path],
    ):
        code, _, err = cli(capsys, *arguments)
        assert (code, err.count("\n"), words in err) == (2, 1, True)
    with pytest.raises(InputError, match=words) as caught:
        require_sd1(path)
    assert caught.value.field == "network.continue_from"


@pytest.mark.parametrize("case", ["peft-lora/pytorch_lora_weights", "peft-lora-2/peft"])
def test_the_cases_of_diffusers_are_called_so(case: str) -> None:
    assert "diffusers and PEFT" in info(CASES / f"{case}.safetensors")["problem"]


def test_kohyas_names_with_pefts_parts_are_used_as_the_webui_does(tmp_path: Path) -> None:
    """network_lora.py:14 of the WebUI takes lora_A for lora_down."""
    path = CASES / "peft-lora-2" / "ab.safetensors"
    found = info(path)
    assert ("problem" in found, found["ranks"], found["kinds"]) == (False, [4], {"LoRA": 1})
    require_sd1(path)
    made = some_lora()
    swapped = {n.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): t for n, t in made.items()}
    save_file(swapped, tmp_path / "a.safetensors")
    save_file(made, tmp_path / "b.safetensors")
    assert info(tmp_path / "a.safetensors")["norm"] == info(tmp_path / "b.safetensors")["norm"]


def test_embeddings_beside_a_lora_are_no_other_format(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({**some_lora(), "bundle_emb.some.word.string_to_param.*": torch.ones(1, 8)}, path)
    assert "problem" not in info(path)


def test_a_run_that_continues_from_diffusers_file_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case: it was called a LoRA for another kind of checkpoint, which it is not."""
    shutil.copytree(CASES / "peft-lora", tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "run.toml").read_text(encoding="utf-8")
    own = text.replace("lora_trainer/demo/assets/small-sd1.safetensors", CHECKPOINT.as_posix())
    (tmp_path / "run.toml").write_text(own, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(capsys, "train", "run.toml", "--root", "root")
    assert (code, "another kind" in err) == (2, False)
    assert "pytorch_lora_weights.safetensors is a LoRA in the names of diffusers and PEFT" in err
