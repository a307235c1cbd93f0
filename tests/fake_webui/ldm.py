"""The networks of a Stable Diffusion 1 checkpoint under the names that its file and the WebUI have for them.

Written from the papers, not from diffusers: so what they compute is a reference for our views of them, too.
Latent diffusion: Rombach et al. 2022; UNet with time embedding: Ho et al. 2020; CLIP's text model: Radford et al. 2021.
Shapes: B pictures, C channels, H × W pixels or latents, L tokens, D width of the text.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps)


def conv(into: int, out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, stride, size // 2)


# ------------------------------------------------------------------ UNet
class ResBlock(nn.Module):
    def __init__(self, into: int, out: int, time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(into), nn.SiLU(), conv(into, out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.out_layers = nn.Sequential(group_norm(out), nn.SiLU(), nn.Identity(), conv(out, out))
        self.skip_connection = conv(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        hidden = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(-2))


class GEGLU(nn.Module):
    """Shazeer 2020."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(into, 2 * out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.ff = Attention(width, width, heads), FeedForward(width)
        self.attn2 = Attention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm, self.proj_in = group_norm(width, 1e-6), conv(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])
        self.proj_out = conv(width, width, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        hidden = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        return x + self.proj_out(hidden.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = conv(width, width, stride=2)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stem(nn.Conv2d):
    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return nn.Conv2d.forward(self, x)


class UNetModel(nn.Module):
    """``model.diffusion_model`` of the checkpoint; arguments as in its yaml."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        attention_resolutions: Sequence[int],
        num_res_blocks: int,
        channel_mult: Sequence[int],
        num_heads: int,
        context_dim: int,
        **others: Any,
    ) -> None:
        super().__init__()
        self.in_channels, self.model_channels = in_channels, model_channels
        time = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time))

        def block(into: int, width: int, level: int) -> list[nn.Module]:
            attends = 2**level in attention_resolutions
            return [ResBlock(into, width, time)] + [SpatialTransformer(width, context_dim, num_heads)] * attends

        width, last = model_channels, len(channel_mult) - 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([Stem(in_channels, width, 3, padding=1)])])
        skips = [width]
        for level, factor in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(nn.ModuleList(block(width, factor * model_channels, level)))
                width = factor * model_channels
                skips.append(width)
            if level < last:
                self.input_blocks.append(nn.ModuleList([Downsample(width)]))
                skips.append(width)
        middle = SpatialTransformer(width, context_dim, num_heads)
        self.middle_block = nn.ModuleList([ResBlock(width, width, time), middle, ResBlock(width, width, time)])
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(channel_mult))):
            for number in range(num_res_blocks + 1):
                layers = block(width + skips.pop(), factor * model_channels, level)
                width = factor * model_channels
                if level and number == num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), conv(width, out_channels))

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W), (B,), (B, L, D) → the noise, (B, C, H, W)."""
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = timesteps[:, None].float() * frequencies
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], -1).to(x.dtype))
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, time, context)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, time, context)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for layer in layers:
                x = layer(x, time, context)
        return self.out(x)


# ------------------------------------------------------------------ VAE
class VaeBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(into, 1e-6), conv(into, out)
        self.norm2, self.conv2 = group_norm(out, 1e-6), conv(out, out)
        self.nin_shortcut = conv(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class VaeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (conv(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        return x + self.proj_out((weights @ v).transpose(1, 2).unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = VaeBlock(width, width), VaeAttention(width), VaeBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks of one size, and the way to the next."""

    def __init__(self, widths: Sequence[int], way: str = "") -> None:
        super().__init__()
        self.block = nn.ModuleList(VaeBlock(*pair) for pair in itertools.pairwise(widths))
        if way:
            self.add_module(way, nn.Module())
            stride = {"stride": 2, "padding": 0} if way == "downsample" else {"padding": 1}
            getattr(self, way).conv = nn.Conv2d(widths[-1], widths[-1], 3, **stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            return self.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        return self.upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest")) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = [config["ch"] * factor for factor in config["ch_mult"]]
        self.conv_in = conv(config["in_channels"], config["ch"])
        before = [config["ch"], *widths]
        self.down = nn.ModuleList(
            Level([before[i]] + [w] * config["num_res_blocks"], "downsample" if i < len(widths) - 1 else "")
            for i, w in enumerate(widths)
        )
        self.mid, self.norm_out = Middle(widths[-1]), group_norm(widths[-1], 1e-6)
        self.conv_out = conv(widths[-1], 2 * config["z_channels"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = [config["ch"] * factor for factor in config["ch_mult"]]
        self.conv_in, self.mid = conv(config["z_channels"], widths[-1]), Middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level([before[i]] + [w] * (config["num_res_blocks"] + 1), "upsample" if i else "")
            for i, w in enumerate(widths)
        )
        self.norm_out, self.conv_out = group_norm(widths[0], 1e-6), conv(widths[0], config["out_ch"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Gaussian:
    """The posterior of a picture's latents."""

    def __init__(self, moments: torch.Tensor) -> None:
        self.mean, self.logvar = moments.chunk(2, 1)

    def mode(self) -> torch.Tensor:
        return self.mean


class AutoencoderKL(nn.Module):
    """``first_stage_model`` of the checkpoint."""

    def __init__(self, *, ddconfig: dict[str, Any], embed_dim: int, **others: Any) -> None:
        super().__init__()
        channels = ddconfig["z_channels"]
        self.encoder, self.decoder = Encoder(ddconfig), Decoder(ddconfig)
        self.quant_conv = conv(2 * channels, 2 * embed_dim, 1)
        self.post_quant_conv = conv(embed_dim, channels, 1)

    def encode(self, pixels: torch.Tensor) -> Gaussian:
        return Gaussian(self.quant_conv(self.encoder(pixels)))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latents))


# ------------------------------------------------------------------ text
class ClipAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        unseen = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + unseen).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(-2))


class ClipMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class ClipLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = ClipAttention(width, config.num_attention_heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = ClipMLP(width, config.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipText(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.embeddings, self.encoder = nn.Module(), nn.Module()
        self.embeddings.token_embedding = nn.Embedding(config.vocab_size, width)
        self.embeddings.position_embedding = nn.Embedding(config.max_position_embeddings, width)
        self.encoder.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(width)


class ClipTextModel(nn.Module):
    """``cond_stage_model.transformer`` of the checkpoint."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.text_model = config, ClipText(config)

    def forward(self, ids: torch.Tensor, skip: int = 1) -> torch.Tensor:
        """Tokens (B, L) → states (B, L, D) of the last layer but ``skip − 1``, normed."""
        embeddings, layers = self.text_model.embeddings, self.text_model.encoder.layers
        x = embeddings.token_embedding(ids) + embeddings.position_embedding(torch.arange(ids.shape[1]))
        for layer in layers[: len(layers) - skip + 1]:
            x = layer(x)
        return self.text_model.final_layer_norm(x)


# ------------------------------------------------------------------ all of it
class FrozenCLIPEmbedder(nn.Module):
    """``cond_stage_model`` of the checkpoint: a tokenizer and CLIP's text model."""

    def __init__(self, tokenizer: Any, transformer: ClipTextModel) -> None:
        super().__init__()
        self.tokenizer, self.transformer = tokenizer, transformer


class LatentDiffusion(nn.Module):
    """The whole checkpoint, as the yaml beside it describes it."""

    is_sd1, is_sd2, is_sdxl = True, False, False
    parameterization = "eps"
    lowvram = False

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.diffusion_model = UNetModel(**params["unet_config"]["params"])
        self.first_stage_model = AutoencoderKL(**params["first_stage_config"]["params"])
        clip = params["cond_stage_config"]["params"]["version"]
        text = ClipTextModel(CLIPTextConfig.from_pretrained(clip, local_files_only=True))
        self.cond_stage_model = FrozenCLIPEmbedder(CLIPTokenizer.from_pretrained(clip, local_files_only=True), text)
        for name in ("betas", "alphas_cumprod"):
            self.register_buffer(name, torch.empty(params["timesteps"]))
        self.scale_factor = params["scale_factor"]

    def get_learned_conditioning(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts → (B, L, D)."""
        return self.cond_stage_model(prompts)


@functools.cache
def _empty(text: str) -> LatentDiffusion:
    with torch.device("meta"):
        model = LatentDiffusion(yaml.safe_load(text)["model"]["params"])
    return model.to_empty(device="cpu").eval()


def _cloned(module: nn.Module) -> Any:
    """With tensors and modules of its own; ``deepcopy`` takes ten times as long."""
    made = copy.copy(module)
    made._parameters = {
        name: None if p is None else nn.Parameter(p.detach().clone()) for name, p in module._parameters.items()
    }
    made._buffers = {name: buffer.clone() for name, buffer in module._buffers.items()}
    made._modules = {name: _cloned(child) for name, child in module._modules.items()}
    return made


def latent_diffusion(text: str) -> LatentDiffusion:
    """A model without weights, as the text of a yaml describes it."""
    return _cloned(_empty(text))


@functools.lru_cache(maxsize=2)
def _file(path: Path, changed: int) -> tuple[str, dict[str, torch.Tensor]]:
    weights = {name: value.float() for name, value in load_file(path).items() if value.is_floating_point()}
    return hashlib.sha256(path.read_bytes()).hexdigest(), weights


def file_of(path: str) -> tuple[str, dict[str, torch.Tensor]]:
    """A checkpoint file's SHA-256 and weights in fp32; read once for all tests."""
    found = Path(path).resolve(strict=True)
    return _file(found, found.stat().st_mtime_ns)
