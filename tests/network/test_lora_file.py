from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.network.adapters import TEXT_PREFIX, Adapters, add_adapters
from lora_trainer.network.lora_file import describe, file_name, read_lora, read_metadata, require_sd1, save_lora, verify
from tests.helpers import CHECKPOINT, config
from tests.network.plain import randomise

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
METADATA = {
    "ss_network_dim": "16",
    "ss_seed": "42",
    "ss_tag_frequency": json.dumps({"10_girl": {"汉服": 3}}, ensure_ascii=False),
    "modelspec.title": "汉服",
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    """Two layers with large weights, so that the file is longer than the legacy hash's window."""
    rng = torch.Generator().manual_seed(1)
    made: Tensors = {}
    for name in ("lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"):
        made[f"{name}.lora_down.weight"] = torch.randn(16, 30_000, generator=rng)
        made[f"{name}.lora_up.weight"] = torch.randn(8, 16, generator=rng)
        made[f"{name}.alpha"] = torch.tensor(0.1)
    return made


@pytest.mark.parametrize(
    ("values", "name"),
    [({}, "a"), ({"epoch": 2}, "a-000002"), ({"step": 100}, "a-step00000100"), ({"epoch": None, "step": None}, "a")],
)
def test_files_are_named_as_kohya_does(values: dict[str, int], name: str) -> None:
    assert file_name("a", **values) == name


# ------------------------------------------------------------------ what is written
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64])
@pytest.mark.parametrize("layout", ["turned", "strided", "channels last", "with a gradient"])
def test_weights_are_written_plain_whatever_their_layout(
    tmp_path: Path, layout: str, dtype: torch.dtype, precision: str
) -> None:
    plain = torch.arange(48).reshape(2, 3, 2, 4).to(dtype)
    odd = {
        "turned": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": plain.repeat_interleave(2, dim=3)[..., ::2],
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "with a gradient": plain.clone().requires_grad_(),
    }[layout]
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    save_lora(tmp_path / "a.safetensors", {name: odd}, {}, precision)
    save_lora(tmp_path / "b.safetensors", {name: plain}, {}, precision)
    kept = load_file(tmp_path / "a.safetensors")[name]
    assert kept.dtype == DTYPES[precision]
    assert torch.equal(kept, plain.to(DTYPES[precision]))
    assert read_metadata(tmp_path / "a.safetensors") == read_metadata(tmp_path / "b.safetensors")


@pytest.mark.parametrize("precision", DTYPES)
def test_weights_have_the_precision_and_alphas_are_fp32(tmp_path: Path, tensors: Tensors, precision: str) -> None:
    save_lora(tmp_path / "a.safetensors", tensors, {}, precision)
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        if name.endswith(".alpha"):
            assert (tensor.dtype, tensor.shape, float(tensor)) == (torch.float32, (), float(torch.tensor(0.1)))
        else:
            assert torch.equal(tensor, tensors[name].to(DTYPES[precision]))


def test_digest_is_that_of_the_files_bytes(tmp_path: Path, tensors: Tensors) -> None:
    digest = save_lora(tmp_path / "sub" / "a.safetensors", tensors, METADATA, "fp16")
    assert digest == hashlib.sha256((tmp_path / "sub" / "a.safetensors").read_bytes()).hexdigest()


def test_metadata_is_kept_and_all_text(tmp_path: Path, tensors: Tensors) -> None:
    save_lora(tmp_path / "a.safetensors", tensors, METADATA, "fp16")
    found = read_metadata(tmp_path / "a.safetensors")
    assert {k: v for k, v in found.items() if not k.startswith("sshs_")} == METADATA
    assert all(isinstance(value, str) for value in found.values())
    header = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"] == found


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_hashes_are_those_of_sd_scripts(tmp_path: Path, tensors: Tensors, precision: str) -> None:
    """Both hash a serialisation that carries only ``ss_*``: all behind the header, and 64 kB at 1 MB."""
    path, bare = tmp_path / "a.safetensors", tmp_path / "bare.safetensors"
    save_lora(path, tensors, METADATA, precision)
    save_file(load_file(path), bare, {k: v for k, v in METADATA.items() if k.startswith("ss_")})
    content = bare.read_bytes()
    behind = 8 + int.from_bytes(content[:8], "little")
    window = content[0x100000 : 0x100000 + 0x10000]
    assert len(window) == 0x10000
    metadata = read_metadata(path)
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[behind:]).hexdigest()
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_model_hash_is_the_weights_alone(tmp_path: Path, tensors: Tensors) -> None:
    hashes = set()
    for index, metadata in enumerate(({}, METADATA, {"ss_seed": "1"})):
        save_lora(tmp_path / f"{index}.safetensors", tensors, metadata, "fp16")
        hashes.add(read_metadata(tmp_path / f"{index}.safetensors")["sshs_model_hash"])
    save_lora(tmp_path / "other.safetensors", {n: t * 2 for n, t in tensors.items()}, {}, "fp16")
    assert len(hashes) == 1
    assert read_metadata(tmp_path / "other.safetensors")["sshs_model_hash"] not in hashes


@pytest.mark.parametrize(
    ("part", "value", "precision"),
    [
        *[("lora_down.weight", value, "fp32") for value in (torch.nan, torch.inf, -torch.inf)],
        *[("lora_up.weight", torch.nan, "bf16"), ("lora_up.weight", 70_000.0, "fp16"), ("alpha", torch.nan, "fp16")],
    ],
)
def test_what_is_no_number_is_refused_and_nothing_written(
    tmp_path: Path, tensors: Tensors, part: str, value: float, precision: str
) -> None:
    name = f"lora_unet_mid_block_attentions_0_proj_in.{part}"
    tensors[name].view(-1)[0] = value
    path = tmp_path / "a.safetensors"
    with pytest.raises(RunError, match=rf"{name} is NaN or too large for {precision}; nothing was written"):
        save_lora(path, tensors, {}, precision)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"old")
    with pytest.raises(RunError):
        save_lora(path, tensors, {}, precision)
    assert path.read_bytes() == b"old"


def test_views_and_transposed_tensors_are_written_right(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    save_lora(tmp_path / "a.safetensors", {"a.lora_down.weight": whole[1:3], "a.lora_up.weight": whole.T}, {}, "fp32")
    found = read_lora(tmp_path / "a.safetensors")
    assert torch.equal(found["a.lora_down.weight"], whole[1:3])
    assert torch.equal(found["a.lora_up.weight"], whole.T)


# ------------------------------------------------------------------ what is read
@pytest.mark.parametrize("read", [read_lora, read_metadata, require_sd1, describe])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.ckpt", b"x", "is not a .safetensors file; only these are loaded, since others can hold code"),
        ("a.pt", None, "is not a .safetensors file"),
        ("a.safetensors", None, "does not exist; check the path"),
        ("a.safetensors", b"", "is empty; get the file again"),
        ("a.safetensors", b"PK\x03\x04 a pickle in a zip file", "is a file of PyTorch with another ending"),
        ("a.safetensors", b"\xff" * 100, "is damaged or not a safetensors file"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0{}x", "is incomplete or damaged"),
    ],
    ids=["pickle", "missing pickle", "missing", "empty", "renamed", "garbage", "too long"],
)
def test_unusable_file_is_one_sentence(tmp_path: Path, read, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_cut_off_file_is_one_sentence(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, tensors, {}, "fp16")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is incomplete or damaged"):
        read_lora(path)


def test_extension_may_be_upper_case_and_metadata_missing(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "A.SAFETENSORS")
    assert read_lora(tmp_path / "A.SAFETENSORS").keys() == tensors.keys()
    assert read_metadata(tmp_path / "A.SAFETENSORS") == {}


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha", True),
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", True),
        ("lora_unet_up_blocks_3_resnets_0_conv1.alpha", True),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", True),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", False),
        ("lora_unet_input_blocks_4_1_proj_in.alpha", False),
        ("lora_transformer_blocks_0.alpha", False),
    ],
)
def test_architecture_is_told_by_the_names(tmp_path: Path, tensors: Tensors, key: str, fits: bool) -> None:
    save_file({**tensors, key: torch.zeros(1)}, tmp_path / "a.safetensors")
    if fits:
        require_sd1(tmp_path / "a.safetensors")
    else:
        with pytest.raises(InputError, match="another kind of checkpoint"):
            require_sd1(tmp_path / "a.safetensors")


def test_checkpoint_and_empty_file_are_no_loras(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is a checkpoint, not a LoRA"):
        require_sd1(CHECKPOINT)
    with pytest.raises(InputError, match="has nothing in it") as caught:
        require_sd1(tmp_path / "a.safetensors")
    assert caught.value.field == "network.continue_from"


@pytest.mark.parametrize("part", ["dora_scale", "hada_w1_a", "lokr_w1", "on_input", "diff", "lora_mid.weight"])
def test_what_nothing_can_be_trained_on_from_is_told_when_it_is_asked_for(
    tmp_path: Path, tensors: Tensors, part: str
) -> None:
    key = next(iter(tensors)).partition(".")[0]
    save_file({**tensors, f"{key}.{part}": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"is not a plain LoRA .it has {key}.{part}") as caught:
        require_sd1(tmp_path / "a.safetensors")
    assert caught.value.field == "network.continue_from"


def test_file_is_described(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, tensors, METADATA, "bf16")
    found = describe(path)
    assert (found["modules"], found["unet_modules"], found["text_modules"]) == (2, 1, 1)
    assert (found["ranks"], found["precision"]) == ([16], ["bfloat16"])
    assert found["alphas"] == pytest.approx([0.1])
    assert found["bytes"] == path.stat().st_size
    assert found["metadata"]["ss_tag_frequency"] == {"10_girl": {"汉服": 3}}
    assert found["metadata"]["ss_seed"] == "42"
    json.dumps(found)


# ------------------------------------------------------------------ reading back what was written
@pytest.fixture(scope="module")
def adapters(standalone: StandaloneHost) -> Adapters:
    with standalone.session(config()) as session:
        made = add_adapters({TEXT_PREFIX: session.model.text.model}, rank=2, alpha=0.3)
    randomise(made)
    return made


@pytest.mark.parametrize("precision", DTYPES)
def test_written_file_is_verified(tmp_path: Path, adapters: Adapters, precision: str) -> None:
    save_lora(tmp_path / "a.safetensors", adapters.state_dict(), METADATA, precision)
    verify(tmp_path / "a.safetensors", adapters)


NAME = "lora_te_text_model_encoder_layers_3_mlp_fc1"


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda t: t.pop(f"{NAME}.lora_up.weight"), 1),
        (lambda t: [t.pop(f"{NAME}.{part}") for part in ("lora_up.weight", "lora_down.weight", "alpha")], 3),
        (lambda t: t.update({"lora_te_extra.lora_up.weight": torch.zeros(1)}), 1),
        (lambda t: t.update({f"{NAME}.lora_down.weight": torch.zeros(3, 64)}), 1),
        (lambda t: t.update({f"{NAME}.alpha": torch.tensor(0.30004)}), 1),
        (lambda t: t.update({f"{NAME}.alpha": t[f"{NAME}.alpha"].half()}), 1),
    ],
    ids=["missing key", "missing layer", "extra key", "other size", "other alpha", "rounded alpha"],
)
def test_difference_in_the_written_file_is_an_error(tmp_path: Path, adapters: Adapters, change, count: int) -> None:
    tensors = adapters.state_dict()
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(RunError, match=rf"does not match the model in {count} places \(first: lora_te_"):
        verify(tmp_path / "a.safetensors", adapters)


def test_model_hash_does_not_depend_on_the_order_of_the_tensors(tmp_path: Path, tensors: Tensors) -> None:
    for name, order in (("a", tensors), ("b", dict(reversed(tensors.items())))):
        save_lora(tmp_path / f"{name}.safetensors", order, {"ss_seed": "1"}, "fp16")
    with safe_open(tmp_path / "a.safetensors", "pt") as a, safe_open(tmp_path / "b.safetensors", "pt") as b:
        assert a.metadata()["sshs_model_hash"] == b.metadata()["sshs_model_hash"]
