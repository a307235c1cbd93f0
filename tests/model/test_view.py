from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig

from lora_trainer.core.errors import RunError
from lora_trainer.hosts.standalone.checkpoint import Checkpoint
from lora_trainer.model.family import UNET
from lora_trainer.model.sd1 import V1_CONFIG
from lora_trainer.model.view import text_view, unet_view
from tests.helpers import CHECKPOINT

Parameters = dict[str, torch.nn.Parameter]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(CHECKPOINT)


def with_params(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A yaml with other fields of the UNet; ``...`` leaves one out."""
    changed = copy.deepcopy(config)
    params = changed["model"]["params"]["unet_config"]["params"]
    params.update(changes)
    for name in [k for k, v in changes.items() if v is ...]:
        del params[name]
    return changed


def parts(checkpoint: Checkpoint) -> list[tuple[torch.nn.Module, Parameters]]:
    return [
        (unet_view(checkpoint.unet, checkpoint.config), checkpoint.unet),
        (text_view(checkpoint.texts[0], checkpoint.text_configs[0]), checkpoint.texts[0]),
    ]


def test_every_parameter_is_the_same_object_and_no_byte_is_copied(checkpoint: Checkpoint) -> None:
    for view, owned in parts(checkpoint):
        seen = list(view.parameters())
        assert {id(p) for p in seen} == {id(p) for p in owned.values()}
        assert len(seen) == len(owned)
        assert {p.data_ptr() for p in seen} == {p.data_ptr() for p in owned.values()}
        extra = [b for b in view.buffers() if not b.is_meta]
        assert sum(b.nbytes for b in extra) <= 77 * 8  # position numbers
        assert not any(t.is_meta for t in [*view.parameters(), *view.buffers()])


def test_names_may_have_the_checkpoints_prefix(checkpoint: Checkpoint) -> None:
    prefixed = {UNET.stored + name: value for name, value in checkpoint.unet.items()}
    view = unet_view(prefixed, checkpoint.config)
    assert view.conv_in.weight is checkpoint.unet["input_blocks.0.0.weight"]


def test_view_is_for_use_and_its_flags_are_the_owners(checkpoint: Checkpoint) -> None:
    state = copy.deepcopy(checkpoint.unet), copy.deepcopy(checkpoint.texts[0])
    for owned in state:
        for index, parameter in enumerate(owned.values()):
            parameter.requires_grad_(index % 2 == 0)
    before = [[p.requires_grad for p in owned.values()] for owned in state]
    views = unet_view(state[0], checkpoint.config), text_view(state[1], checkpoint.text_configs[0])
    assert [[p.requires_grad for p in owned.values()] for owned in state] == before
    assert not any(module.training for view in views for module in view.modules())


def test_owners_changes_are_seen(checkpoint: Checkpoint) -> None:
    owned = copy.deepcopy(checkpoint.unet)
    view = unet_view(owned, checkpoint.config)
    owned["out.2.bias"].data = torch.full((4,), 7.0, dtype=torch.float16)
    assert view.conv_out.bias.tolist() == [7.0] * 4
    assert view.conv_out.bias.dtype == torch.float16


def test_view_computes_what_its_weights_say(checkpoint: Checkpoint) -> None:
    owned = copy.deepcopy(checkpoint.unet)
    view = unet_view(owned, checkpoint.config)
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 64)
    with torch.no_grad():
        output = view(latents, torch.tensor([1, 999]), states).sample
        owned["out.2.weight"].zero_()
        owned["out.2.bias"].fill_(0.5)
        silent = view(latents, torch.tensor([1, 999]), states).sample
    assert output.shape == latents.shape
    assert torch.isfinite(output).all()
    assert output.std() > 0
    assert torch.all(silent == 0.5)


def test_two_views_have_modules_of_their_own(checkpoint: Checkpoint) -> None:
    one, other = (unet_view(checkpoint.unet, checkpoint.config) for _ in range(2))
    assert one.conv_in is not other.conv_in
    assert one.conv_in.weight is other.conv_in.weight


@pytest.mark.parametrize(
    "changes",
    [
        {"model_channels": 64},
        {"channel_mult": [1, 2, 2]},
        {"channel_mult": [1, 2, 2, 3, 3]},
        {"channel_mult": [1, 2, 3, 3]},
        {"num_res_blocks": 1},
        {"num_res_blocks": 3},
        {"attention_resolutions": [4, 2]},
        {"attention_resolutions": []},
        {"context_dim": 128},
        {"context_dim": None},
        {"num_heads": 5},
        {"num_heads": ...},
        {"in_channels": 9},
        {"in_channels": ...},
        {"out_channels": 3},
        {"transformer_depth": 2},
        {"use_linear_in_transformer": True},
        {"num_classes": "sequential"},
    ],
    ids=str,
)
def test_wrong_yaml_is_a_sentence(checkpoint: Checkpoint, changes: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"^The checkpoint's (weights|\.yaml) do") as caught:
        unet_view(checkpoint.unet, with_params(checkpoint.config, **changes))
    assert ".yaml" in str(caught.value)


def test_yaml_of_full_size_sd1_does_not_fit_and_an_empty_one_neither(checkpoint: Checkpoint) -> None:
    for config in (V1_CONFIG, {"model": {"params": {"unet_config": {"params": {}}}}}):
        with pytest.raises(RunError, match=r"\.yaml"):
            unet_view(checkpoint.unet, config)


def test_yaml_may_leave_out_what_old_ones_do(checkpoint: Checkpoint) -> None:
    unet_view(checkpoint.unet, with_params(checkpoint.config, transformer_depth=...))


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_weights_are_said(checkpoint: Checkpoint, change: str) -> None:
    for owned, view in (
        (dict(checkpoint.unet), lambda p: unet_view(p, checkpoint.config)),
        (dict(checkpoint.texts[0]), lambda p: text_view(p, checkpoint.text_configs[0])),
    ):
        if change == "missing":
            owned.popitem()
        else:
            owned["extra.weight"] = torch.nn.Parameter(torch.zeros(1))
        with pytest.raises(RunError, match="The checkpoint's weights do not have the shape"):
            view(owned)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
def test_wrong_text_config_is_a_sentence(checkpoint: Checkpoint, field: str) -> None:
    values = checkpoint.text_configs[0].to_dict()
    with pytest.raises(RunError, match="The checkpoint's weights do not"):
        text_view(checkpoint.texts[0], CLIPTextConfig(**{**values, field: values[field] * 2}))
