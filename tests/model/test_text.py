from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.clip import tower
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.model.text import TextEncoder

WORDS = st.sampled_from([",", ",", "red", "circle", "a", "ring", "zorp", "(", ")", "[", ":1.2", ".", "汉", "!!"])
CAPTIONS = st.lists(WORDS, max_size=260).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer(standalone: StandaloneHost) -> Any:

    with standalone.session(ModelRequest()) as session:
        return session.model.text[0].tokenizer


def webui_chunks(tokens: list[int], comma: int, start: int, end: int, backtrack: int) -> list[list[int]]:
    """What ``tokenize_line`` of modules/sd_hijack_clip.py (WebUI v1.10.1) makes of a prompt without emphasis.

    Written anew from its rules: a token that comes to a full chunk opens the next; when the last comma lies at most
    ``backtrack`` tokens back, what stands behind it moves along, unless the token is itself a comma.
    """
    chunks: list[list[int]] = [[]]
    last_comma: int | None = None
    for token in tokens:
        if len(chunks[-1]) == 75:
            moved: list[int] = []
            if token != comma and backtrack and last_comma is not None and 75 - last_comma <= backtrack:
                moved = chunks[-1][last_comma + 1 :]
                del chunks[-1][last_comma + 1 :]
            chunks.append(moved)
            last_comma = None
        elif token == comma:
            last_comma = len(chunks[-1])
        chunks[-1].append(token)
    return [[start, *chunk, *[end] * (75 - len(chunk)), end] for chunk in chunks]


def test_tokenizer_knows_the_comma(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("a, b")["input_ids"])[2] == ",</w>"


@given(caption=CAPTIONS, backtrack=st.sampled_from([20, 20, 0, 5, 75]))
def test_chunks_are_the_webuis(tokenizer: Any, caption: str, backtrack: int) -> None:
    encoder = TextEncoder(None, tokenizer, backtrack=backtrack)  # type: ignore[arg-type]
    comma = tokenizer.get_vocab()[",</w>"]
    wanted = webui_chunks(encoder.tokens(caption), comma, tokenizer.bos_token_id, tokenizer.eos_token_id, backtrack)
    assert encoder.chunks(caption) == wanted


@given(CAPTIONS)
def test_no_token_is_lost_or_moved(tokenizer: Any, caption: str) -> None:
    encoder = TextEncoder(None, tokenizer)  # type: ignore[arg-type]
    chunks = encoder.chunks(caption)
    end = tokenizer.eos_token_id
    assert all(len(c) == 77 and c[0] == tokenizer.bos_token_id and c[-1] == end for c in chunks)
    assert [t for c in chunks for t in c[1:] if t != end] == encoder.tokens(caption)


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_number_of_chunks(tokenizer: Any, words: int, chunks: int) -> None:
    assert len(TextEncoder(None, tokenizer).chunks(" ".join(["a"] * words))) == chunks  # type: ignore[arg-type]


def test_what_stands_behind_a_late_comma_moves_along(tokenizer: Any) -> None:
    encoder = TextEncoder(None, tokenizer)  # type: ignore[arg-type]
    late = encoder.chunks(" ".join(["a"] * 60 + [","] + ["b"] * 20))
    early = encoder.chunks(" ".join(["a"] * 30 + [","] + ["b"] * 50))
    a, b, comma = (encoder.tokens(word)[0] for word in ("a", "b", ","))
    assert [late[0].count(t) for t in (a, comma, b)] == [60, 1, 0]
    assert [early[0].count(t) for t in (a, comma, b)] == [30, 1, 44]


@pytest.mark.parametrize(
    "caption", ["(red)", "((red))", "[red]", "(red:1.2)", "a (red:1.2) ring", "BREAK", "red\\(x\\)"]
)
def test_captions_are_literal(tokenizer: Any, caption: str) -> None:
    encoder = TextEncoder(None, tokenizer)  # type: ignore[arg-type]
    wanted = tokenizer(caption, add_special_tokens=False)["input_ids"]
    assert encoder.chunks(caption)[0][1 : 1 + len(wanted)] == wanted
    shown = "".join(tokenizer.convert_ids_to_tokens(wanted)).replace("</w>", "")
    assert shown == caption.lower().replace(" ", "")


# ------------------------------------------------------------------ encoding
@torch.no_grad()
def test_chunks_are_encoded_alone_and_joined(model: LoadedModel) -> None:
    caption = " ".join(["red circle ,"] * 40)
    chunks = model.text[0].chunks(caption)
    assert len(chunks) > 1
    alone = [model.text[0].model(torch.tensor([c])).last_hidden_state for c in chunks]
    torch.testing.assert_close(model.text([caption]).states, torch.cat(alone, dim=1))


@torch.no_grad()
def test_shorter_captions_are_filled_with_empty_chunks(model: LoadedModel) -> None:
    long = " ".join(["red"] * 100)
    both = model.text(["blue ring", long]).states
    assert both.shape == (2, 154, 64)
    torch.testing.assert_close(both[:1], torch.cat([model.text(["blue ring"]).states, model.text([""]).states], dim=1))
    torch.testing.assert_close(both[1:], model.text([long]).states)


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [0, 1, 2, 3, 12])
def test_clip_skip_leaves_out_the_last_layers_but_not_the_norm(model: LoadedModel, clip_skip: int) -> None:
    shortened = copy.deepcopy(model.text[0].model)
    encoder = tower(shortened).encoder
    encoder.layers = encoder.layers[: len(encoder.layers) - max(0, clip_skip - 1)]
    encoder = TextEncoder(model.text[0].model, model.text[0].tokenizer, clip_skip)
    ids = torch.tensor(encoder.chunks("red circle"))
    torch.testing.assert_close(encoder(["red circle"]).states, shortened(ids).last_hidden_state)


def test_gradients_reach_the_text_encoder(model: LoadedModel) -> None:
    view = copy.deepcopy(model.text[0].model)
    view.requires_grad_(True)
    for clip_skip in (1, 2):
        view.zero_grad()
        TextEncoder(view, model.text[0].tokenizer, clip_skip)(["red circle"]).states.square().sum().backward()
        grad = tower(view).encoder.layers[0].mlp.fc1.weight.grad
        assert grad.abs().sum() > 0
