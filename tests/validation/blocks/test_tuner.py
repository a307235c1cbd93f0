"""Learning block weights: the gradient against merged weights in float64, the optimizer, and what is compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.core.randomness import python_rng
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.diffusion.noise import keyed_noise
from lora_trainer.hosts.base import Session
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.network.adapters import UNET_PREFIX, Shape, add_adapters
from lora_trainer.network.blocks.block_map import block_of
from lora_trainer.network.lora_file import save_lora
from lora_trainer.validation.blocks.proximal_adam import ProximalAdam
from lora_trainer.validation.blocks.tuner import Effort, Gain, Tuner
from lora_trainer.validation.metrics.evaluation_set import FOLDER, HELD_OUT, MAX_PICTURES, TRAINING, find_pictures
from tests.helpers import draw_pictures
from tests.network.plain import both_parts, delta, key_of, randomise

EFFORT = Effort(steps=2, batch=2, levels=2, draws=1)
BLOCKS = ["TE1", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{n:02d}" for n in range(3, 12))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_pictures(folder, count=5, size=(64, 64))
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> TrainConfig:
    data = {"folder": str(folder), "resolution": 64, "bucket_step": 32}
    return TrainConfig.from_dict({"name": "a", "data": data, "validation": {"share": 0.4}})


@pytest.fixture(scope="module")
def file(standalone: StandaloneHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on all attention layers of UNet and text encoder, with an alpha that is not the rank."""
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    with standalone.session(TrainConfig(name="test")) as session:
        adapters = add_adapters(both_parts(session.model), rank=2, alpha=3.0)
        save_lora(path, randomise(adapters, 0.1), {}, "fp32")
    return path


@pytest.fixture
def session(standalone: StandaloneHost, config: TrainConfig) -> Iterator[Session]:
    with standalone.session(config) as held:
        yield held


@pytest.fixture
def tuner(standalone: StandaloneHost, session: Session, config: TrainConfig, file: Path) -> Iterator[Tuner]:
    made = Tuner(session, file, find_pictures(standalone, session, config), weight=0.8, effort=EFFORT)
    yield made
    made.close()


# ------------------------------------------------------------------ what is asked for
@pytest.mark.parametrize(
    ("values", "field"),
    [({"steps": 0}, "steps"), ({"steps": -3}, "steps"), ({"pull": -0.1}, "pull"), ({"pull": math.nan}, "pull")],
)
def test_an_effort_that_cannot_be_made_is_one_sentence(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: .* not {values[field]}; ") as caught:
        Effort(**values)
    assert caught.value.field == field


# ------------------------------------------------------------------ the loss and its gradient, without PEFT
def with_deltas(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str, factor: Any) -> nn.Module:
    """A float64 copy with factor(key) · ΔW added to its weights."""
    made = copy.deepcopy(module).double().eval()
    for name, part in made.named_modules():
        key = key_of(prefix, name)
        if f"{key}.lora_down.weight" in tensors:
            down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
            change = delta(down, up, float(tensors[f"{key}.alpha"]), part.weight)
            part.weight = nn.Parameter(part.weight + factor(key) * change)
    return made


@torch.no_grad()
def plain_loss(
    model: LoadedModel,
    file: Path,
    weights: dict[str, float],
    latent: torch.Tensor,
    caption: str,
    t: int,
    noise: torch.Tensor,
) -> float:
    """mean (ε − ε_θ(x_t))² in float64, with every weight of the LoRA multiplied by 0.8 and its block's."""
    tensors = load_file(file)

    def factor(key: str) -> float:
        return 0.8 * weights[(block_of(key) or "").replace("BASE", "TE1")]

    unet = with_deltas(model.unet, tensors, "lora_unet_", factor)
    text = with_deltas(model.text.model, tensors, "lora_te_", factor)
    ids = model.text.tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
    alpha = float(model.alphas_cumprod[t])
    noisy = (math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * noise).double()
    guess = unet(noisy[None], torch.tensor([t]), text(ids).last_hidden_state).sample[0]
    return float(((guess - noise) ** 2).mean())


def test_the_gradient_is_that_of_merged_weights_in_float64(
    standalone: StandaloneHost, tuner: Tuner, config: TrainConfig, file: Path
) -> None:
    assert tuner.blocks == BLOCKS
    weights = dict.fromkeys(BLOCKS, 1.0) | {"IN04": 0.4, "OUT09": 1.3}
    found = tuner.gradient(torch.tensor(list(weights.values()), dtype=torch.float64), 1, 1, "key")
    t = min(int((1 + python_rng(0, "block tuning level", "key", 1).random()) * 500), 999)
    item = tuner._pictures.items[1]
    latent = tuner._pictures.latents[item.path, False]
    noise = keyed_noise(latent.shape, 0.0, 0, "block tuning", "key", 1, t, 1)
    with standalone.session(config) as fresh:
        for block in ("TE1", "IN04", "OUT09"):
            step = 1e-4

            def loss(change: float, block: str = block) -> float:
                moved = {**weights, block: weights[block] + change}
                return plain_loss(fresh.model, file, moved, latent, item.caption, t, noise)

            slope = (loss(step) - loss(-step)) / (2 * step)
            assert float(found[BLOCKS.index(block)]) == pytest.approx(slope, rel=2e-3, abs=1e-6)
    assert len({round(float(value), 9) for value in found}) == len(BLOCKS)


def test_a_measured_loss_is_that_of_merged_weights(
    standalone: StandaloneHost, tuner: Tuner, config: TrainConfig, file: Path
) -> None:
    weights = dict.fromkeys(BLOCKS, 1.0) | {"TE1": 0.5, "OUT03": 0.0}
    (found,) = tuner.losses(tuple(weights.values()), [0])
    item = tuner._pictures.items[0]
    latent = tuner._pictures.latents[item.path, False]
    with standalone.session(config) as fresh:
        wanted = []
        for t in (250, 750):
            noise = keyed_noise(latent.shape, 0.0, 0, "block tuning", "measure", 0, t, 0)
            wanted.append(plain_loss(fresh.model, file, weights, latent, item.caption, t, noise))
    assert found == pytest.approx(sum(wanted) / 2, rel=1e-4)


def test_only_the_unet_in_the_file_needs_no_gradient_through_the_text(
    standalone: StandaloneHost, session: Session, config: TrainConfig, file: Path, tmp_path: Path
) -> None:
    part = {name: tensor for name, tensor in load_file(file).items() if "mid_block" in name}
    save_file(part, tmp_path / "mid.safetensors")
    tuner = Tuner(session, tmp_path / "mid.safetensors", find_pictures(standalone, session, config), effort=EFFORT)
    assert tuner.blocks == ["M00"]
    gradient = tuner.gradient(torch.ones(1, dtype=torch.float64), 0, 0, "key")
    assert gradient.shape == (1,)
    assert float(gradient) != 0


def test_modules_of_no_block_stay_as_they_are(
    standalone: StandaloneHost, session: Session, config: TrainConfig, tmp_path: Path
) -> None:
    with standalone.session(config) as other:
        adapters = add_adapters({UNET_PREFIX: other.model.unet}, rank=2, alpha=2.0, convolutions=Shape(2, 2.0))
        tensors = randomise(adapters)
    key = "lora_unet_time_embedding_linear_1"
    weight = session.model.unet.time_embedding.linear_1.weight
    tensors |= {
        f"{key}.lora_down.weight": torch.randn(2, weight.shape[1]),
        f"{key}.lora_up.weight": torch.randn(weight.shape[0], 2),
    }
    save_lora(tmp_path / "conv.safetensors", tensors, {}, "fp32")
    tuner = Tuner(session, tmp_path / "conv.safetensors", find_pictures(standalone, session, config), effort=EFFORT)
    assert "IN03" in tuner.blocks
    assert "other" not in tuner.blocks
    zeros = (0.0,) * len(tuner.blocks)
    nothing = tuner.losses(zeros, [0])
    tuner._losses.clear()
    with tuner.adapters.disabled():
        assert tuner.losses(zeros, [0]) != pytest.approx(nothing, rel=1e-6)


# ------------------------------------------------------------------ the optimizer
@given(st.floats(-0.0099, 0.0099), st.floats(-1.0, 1.0).filter(lambda g: abs(g) > 0.05))
def test_a_weight_rests_at_one_while_its_gradient_is_below_the_pull(small: float, large: float) -> None:
    optimizer = ProximalAdam(2, 50, 0.08, 0.01)
    for _ in range(50):
        optimizer.step(torch.tensor([small, large], dtype=torch.float64))
    weights = optimizer.rounded()
    assert weights[0] == 1
    assert weights[1] == (0.0 if large > 0 else 1.5)


@pytest.mark.parametrize(("minimum", "curve"), [(0.3, 1.0), (1.4, 0.5), (0.98, 0.4), (-2.0, 1.0), (9.0, 1.0)])
def test_it_finds_the_minimum_of_a_parabola_with_the_pull(minimum: float, curve: float) -> None:
    """½a(w − m)² + λ|w − 1| is lowest where m is shrunk towards 1 by λ/a, within the bounds."""
    pull = 0.05
    optimizer = ProximalAdam(1, 400, 0.08, pull)
    for _ in range(400):
        optimizer.step(curve * (optimizer.weights - minimum))
    away = minimum - 1
    wanted = 1 + math.copysign(max(0.0, abs(away) - pull / curve), away)
    assert float(optimizer.weights) == pytest.approx(min(1.5, max(0.0, wanted)), abs=0.02)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5))
def test_weights_stay_within_bounds_and_are_round(gradients: list[float]) -> None:
    optimizer = ProximalAdam(len(gradients), 9, 0.5, 0.0)
    for sign in (1, 1, -1, 1, -1, -1, -1, -1, 1):
        optimizer.step(sign * torch.tensor(gradients, dtype=torch.float64))
    for weight in optimizer.rounded():
        assert 0 <= weight <= 1.5
        assert weight == round(weight * 20) / 20


# ------------------------------------------------------------------ fitting and comparing
def test_fitting_lowers_the_loss_that_it_is_fitted_to(tuner: Tuner) -> None:
    """A LoRA of random numbers only does harm, so that lower weights are better."""
    tuner.effort = Effort(steps=4, batch=1, levels=1, draws=1, rate=0.3, l1=0.0)
    weights = tuner.fit([0, 1], "all")
    assert sum(weights) < len(weights)
    assert sum(tuner.losses(weights, [0, 1])) < sum(tuner.losses(tuner.ones, [0, 1]))
    one = torch.ones(len(BLOCKS), dtype=torch.float64)
    assert torch.equal(tuner.gradient(one, 0, 0, "key"), tuner.gradient(one, 0, 0, "key"))
    assert not torch.equal(tuner.gradient(one, 0, 0, "key"), tuner.gradient(one, 0, 0, "other key"))


def test_weights_are_never_judged_on_pictures_that_they_were_chosen_on(
    tuner: Tuner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tuner, "count", 7)
    measured: list[tuple[object, tuple[int, ...]]] = []

    def losses(weights: Any, pictures: Any) -> list[float]:
        measured.append((weights, tuple(pictures)))
        return [2.0 + number - (weights[0] != 1.0) * 0.5 for number in pictures]

    monkeypatch.setattr(tuner, "losses", losses)
    gain, chosen = tuner.compare(lambda on: (min(on) / 10, *on))
    first, second = tuner.halves()
    assert sorted([*first, *second]) == list(range(7))
    assert abs(len(first) - len(second)) == 1
    assert chosen == [(min(first) / 10, *first), (min(second) / 10, *second)]
    assert [entry for entry in measured if entry[0] in chosen] == [
        (chosen[0], tuple(second)),
        (chosen[1], tuple(first)),
    ]
    assert gain.difference.mean == pytest.approx(0.5)
    assert (gain.difference.se, gain.difference.count) == (pytest.approx(0.0), 7)


def gain(*differences: float) -> Gain:
    return Gain(dict.fromkeys(range(len(differences)), 1.0), {n: 1.0 - d for n, d in enumerate(differences)})


def test_a_gain_helps_only_when_it_is_hardly_chance() -> None:
    assert gain(0.1, 0.11, 0.09, 0.1).state == "helps"
    assert gain(0.2, -0.05, 0.15, -0.02).state == "maybe"
    assert gain(0.2, -0.25, 0.15, -0.02).state == "no"
    assert gain(-0.1, -0.1, -0.1).state == "no"
    assert gain(0.0, 0.0).state == "no"
    found = gain(0.1, 0.2, 0.3).to_dict()
    assert found["improvement"] == pytest.approx(0.2)
    assert found["error"] == pytest.approx(0.1 / math.sqrt(3))
    assert (found["before"], found["after"], found["relative"]) == pytest.approx((1.0, 0.8, 0.2))


def test_one_gain_beats_another_when_they_differ_by_more_than_the_error_between_them() -> None:
    rough, better = gain(0.1, 0.5, 0.9), gain(0.12, 0.52, 0.93)
    assert rough.is_beaten_by(better)  # far below the spread of each, but the same on every picture
    assert not better.is_beaten_by(rough)
    assert not rough.is_beaten_by(gain(0.3, 0.3, 0.95))
    assert not rough.is_beaten_by(rough)


# ------------------------------------------------------------------ the host
def test_the_model_is_used_in_turns_only_and_left_as_it_was(
    standalone: StandaloneHost, session: Session, config: TrainConfig, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = [0]
    turn = session.turn
    parts = (session.model.unet, session.model.text.model)
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]

    @contextmanager
    def watched() -> Iterator[None]:
        with turn():
            inside[0] += 1
            yield
            inside[0] -= 1

    def check(*_: object) -> None:
        assert inside[0] == 1, "the model was used outside of a turn"

    monkeypatch.setattr(session, "turn", watched)
    hooks = [part.register_forward_pre_hook(check) for part in parts]
    effort = Effort(steps=1, batch=1, levels=1, draws=1)
    tuner = Tuner(session, file, find_pictures(standalone, session, config), effort=effort)
    tuner.compare(lambda on: tuner.fit(on, "key"))
    tuner.close()
    for hook in hooks:
        hook.remove()
    for part, weights in zip(parts, before, strict=True):
        assert not [m for m in part.modules() if isinstance(m, LoraLayer)]
        assert part.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())


def test_a_file_of_another_kind_leaves_nothing_behind(
    standalone: StandaloneHost, session: Session, config: TrainConfig, file: Path, tmp_path: Path
) -> None:
    wrong = {name.replace("lora_te_", "lora_te1_"): tensor for name, tensor in load_file(file).items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    pictures = find_pictures(standalone, session, config)
    with pytest.raises(InputError, match="another kind of checkpoint"):
        Tuner(session, tmp_path / "wrong.safetensors", pictures, effort=EFFORT)
    assert not [m for m in session.model.unet.modules() if isinstance(m, LoraLayer)]


def test_progress_counts_pictures_and_can_stop(
    standalone: StandaloneHost, session: Session, config: TrainConfig, file: Path
) -> None:
    seen: list[int] = []

    def part(done: int) -> None:
        seen.append(done)
        if done == 3:
            raise RunError("It was stopped.")

    tuner = Tuner(session, file, find_pictures(standalone, session, config), effort=EFFORT, on_part=part)
    with pytest.raises(RunError, match="stopped"):
        tuner.fit([0, 1])
    assert seen == [1, 2, 3]
    assert tuner.losses(tuner.ones, [0, 1])
    assert seen == [1, 2, 3]  # both were measured before, and are not measured again


def test_too_little_memory_takes_smaller_steps_and_then_is_one_sentence(
    tuner: Tuner, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuner.losses(tuner.ones, [0])
    tuner._losses.clear()
    losses, most = tuner._denoiser.losses, [1]

    def short(latents: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(latents) > most[0]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return losses(latents, *arguments)

    monkeypatch.setattr(tuner._denoiser, "losses", short)
    assert tuner.losses(tuner.ones, [0]) == pytest.approx(wanted, rel=1e-5)
    most[0] = 0
    assert not session.model.unet.is_gradient_checkpointing
    with pytest.raises(RunError, match="Memory is full"):
        tuner.gradient(torch.ones(len(BLOCKS), dtype=torch.float64), 0, 0, "key")
    assert session.model.unet.is_gradient_checkpointing
    with pytest.raises(RunError, match="Memory is full"):
        tuner.losses(tuner.ones, [1])
    tuner.close()
    assert not session.model.unet.is_gradient_checkpointing


def test_with_gradient_checkpointing_the_gradient_is_the_same(tuner: Tuner, session: Session) -> None:
    ones = torch.ones(len(BLOCKS), dtype=torch.float64)
    plain = tuner.gradient(ones, 0, 0, "key")
    session.model.unet.enable_gradient_checkpointing()
    assert torch.allclose(tuner.gradient(ones, 0, 0, "key"), plain, rtol=1e-4, atol=1e-8)


# ------------------------------------------------------------------ pictures
def test_the_pictures_are_those_kept_aside(standalone: StandaloneHost, session: Session, config: TrainConfig) -> None:
    _, kept = held_out(scan(config.data).items, 0.4, config.training.seed)
    found = find_pictures(standalone, session, config)
    assert (found.kind, [item.path for item in found.items]) == (HELD_OUT, [item.path for item in kept])
    assert all(found.latents[item.path, False].shape == (4, 8, 8) for item in found.items)


def test_without_any_the_trained_ones_are_taken_and_it_is_said(
    standalone: StandaloneHost, session: Session, config: TrainConfig
) -> None:
    found = find_pictures(standalone, session, config.with_values({"validation.share": 0}))
    assert (found.kind, len(found.items)) == (TRAINING, 5)
    changed = find_pictures(standalone, session, config, fingerprint="of other pictures")
    assert (changed.kind, len(changed.items)) == (TRAINING, 5)


def test_a_folder_of_others_and_at_most_so_many(
    standalone: StandaloneHost, session: Session, config: TrainConfig, tmp_path: Path
) -> None:
    draw_pictures(tmp_path / "others", count=3, size=(64, 64))
    (tmp_path / "others" / "02.png").write_bytes(b"no picture")
    found = find_pictures(standalone, session, config, str(tmp_path / "others"))
    assert (found.kind, [item.path.name for item in found.items]) == (FOLDER, ["00.png", "01.png"])
    (tmp_path / "others" / "01.png").unlink()
    with pytest.raises(InputError, match="there is only 1") as caught:
        find_pictures(standalone, session, config, str(tmp_path / "others"))
    assert caught.value.field == "pictures"
    assert MAX_PICTURES >= 24


def test_of_too_many_pictures_some_are_chosen_by_the_seed(
    standalone: StandaloneHost, session: Session, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_trainer.validation.metrics.evaluation_set.MAX_PICTURES", 2)
    chosen = [
        [i.path for i in find_pictures(standalone, session, config.with_values({"validation.share": 0}), seed=s).items]
        for s in (0, 0, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1]
    assert all(len(each) == 2 for each in chosen)
    assert len({tuple(each) for each in chosen}) > 1
