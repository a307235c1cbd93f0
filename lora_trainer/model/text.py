"""Text conditioning in the WebUI's chunks, captions taken literally.

The WebUI cuts a prompt into chunks of 75 tokens, moving what stands behind a late comma into the next
one, and joins their encodings (``modules/sd_hijack_clip.py``). Training follows it, since that is where
pictures are made; sd-scripts keeps one start and end token instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CLIPTextModel

from lora_trainer.model.clip import layer_output, tower
from lora_trainer.model.conditioning import Conditioning

CHUNK = 75
COMMA_BACKTRACK = 20


class TextEncoder:
    """CLIP and its tokenizer.

    Args:
        model: the text encoder, or a view of it; one with a projection gives pooled embeddings too.
        tokenizer: a CLIP tokenizer.
        clip_skip: 1 uses the last layer, 2 the one before, … (each with the final LayerNorm, as SD1 does).
        backtrack: how many tokens behind a comma are moved into the next chunk at most.
    """

    def __init__(
        self, model: CLIPTextModel, tokenizer: Any, clip_skip: int = 1, backtrack: int = COMMA_BACKTRACK
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.clip_skip = clip_skip
        self._backtrack = backtrack
        self._comma = tokenizer.get_vocab().get(",</w>")
        self._start: int = tokenizer.bos_token_id
        self._end: int = tokenizer.eos_token_id

    def tokens(self, caption: str) -> list[int]:
        """The caption's token numbers without start and end; long ones are cut into chunks, so no warning is due."""
        return self.tokenizer([caption], truncation=False, add_special_tokens=False, verbose=False)["input_ids"][0]

    def chunks(self, caption: str) -> list[list[int]]:
        """Token numbers in chunks of 77: start, 75 tokens filled up with end tokens, end."""
        parts: list[list[int]] = []
        part: list[int] = []
        comma = -1
        for token in self.tokens(caption):
            if token == self._comma:
                comma = len(part)
            elif self._backtrack and len(part) == CHUNK and comma != -1 and len(part) - comma <= self._backtrack:
                parts.append(part[: comma + 1])
                part, comma = part[comma + 1 :], -1
            if len(part) == CHUNK:
                parts.append(part)
                part, comma = [], -1
            part.append(token)
        if part or not parts:
            parts.append(part)
        return [[self._start, *p, *[self._end] * (CHUNK - len(p)), self._end] for p in parts]

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions.

        Returns:
            States (B, 77·n, C), n being the chunks of the longest caption; shorter ones are filled with empty chunks.
            With a projection also pooled embeddings (B, P), those of the first chunks.
        """
        chunked = [self.chunks(caption) for caption in captions]
        empty = self.chunks("")[0]
        count = max(len(c) for c in chunked)
        encoded = [self._encode([c[i] if i < len(c) else empty for c in chunked]) for i in range(count)]
        return Conditioning(torch.hstack([states for states, _ in encoded]), encoded[0][1])

    def on(self, model: Any) -> TextEncoder:
        """The same with another model of this shape."""
        return TextEncoder(model, self.tokenizer, self.clip_skip, self._backtrack)

    def _encode(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States (B, 77, C) of one chunk of each caption, and its pooled embeddings (B, P), if there are any."""
        tokens = torch.tensor(ids, device=tower(self.model).embeddings.token_embedding.weight.device)
        if self.clip_skip <= 1:
            output = self.model(tokens)
            return output.last_hidden_state, getattr(output, "text_embeds", None)
        states, output = layer_output(self.model, tokens, -self.clip_skip)
        return tower(self.model).final_layer_norm(states), getattr(output, "text_embeds", None)


class TextEncoders(tuple[TextEncoder, ...]):
    """The text encoders of a model, in the order in which their states are joined."""

    __slots__ = ()

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        """Encode captions.

        Returns:
            States (B, 77·n, C₁ + C₂ + …), and the pooled embeddings (B, P) of the last encoder that gives any.
        """
        encoded = [encoder(captions) for encoder in self]
        if len(encoded) == 1:
            return encoded[0]
        pooled = [each.pooled for each in encoded if each.pooled is not None]
        return Conditioning(torch.cat([each.states for each in encoded], dim=-1), pooled[-1] if pooled else None)
