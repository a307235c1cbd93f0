"""Held-out losses of a run's files, against the loss computed from merged weights without the package's loop."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError
from lora_trainer.dataset.plan import held_out
from lora_trainer.dataset.scan import scan
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.diffusion.noise import keyed_noise
from lora_trainer.hosts.base import Host, ModelRequest, Session
from lora_trainer.model.loaded import LoadedModel
from lora_trainer.runs.run import Run
from lora_trainer.validation.metrics import held_out_loss as numbers
from lora_trainer.validation.metrics.held_out_loss import held_out_losses
from lora_trainer.validation.metrics.paired import Difference
from tests.helpers import draw_pictures
from tests.network.plain import merged
from tests.runs_helpers import document, make_jobs, run_to_end

LEVELS = 2
CHANGES = {
    "training__steps": 4,
    "training__text_lr": 1e-2,
    "training__seed": 5,
    "save__every_steps": 2,
    "save__every_epochs": 0,
    "save__precision": "fp32",
    "validation__share": 0.4,
    "validation__timesteps": LEVELS,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that trained UNet and text encoder, and wrote two files."""
    run = run_to_end(tmp_path_factory.mktemp("numbers"), **CHANGES)
    assert len(run.manifest["files"]) == 2
    return run


@pytest.fixture(scope="module")
def host(run: Run) -> Host:
    return make_jobs(run.folder.parent.parent).host


@pytest.fixture(scope="module")
def session(host: Host, run: Run) -> Iterator[Session]:
    """One for all tests: each leaves the model without adapters."""
    with host.session(ModelRequest.of(run.config())) as held:
        yield held


def files(run: Run) -> list[Path]:
    return [Path(entry["path"]) for entry in run.manifest["files"]]


@pytest.fixture(scope="module")
def small(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run's files with few of their modules, which are put on the model in no time."""
    folder, made = tmp_path_factory.mktemp("small"), []
    for file in files(run):
        tensors = load_file(file)
        chosen = {name.partition(".")[0] for name in list(tensors)[::97]}
        made.append(folder / file.name)
        save_file({name: v for name, v in tensors.items() if name.partition(".")[0] in chosen}, made[-1])
    return made


def kept_pictures(run: Run) -> list[Path]:
    """What the run's own steps never saw; tests/dataset/test_plan.py holds the split to its promises."""
    config = run.config()
    return [i.path for i in held_out(scan(config.data).items, config.validation.share, config.training.seed)[1]]


@torch.no_grad()
def plain_losses(model: LoadedModel, pictures: list[Path], lora: Path | None, weight: float) -> list[float]:
    """mean ‖ε − ε_θ(√ᾱ x + √(1−ᾱ) ε, t, caption)‖² of each picture, with the LoRA added to the weights."""
    tensors = load_file(lora) if lora else {}
    unet = merged(model.unet, tensors, "lora_unet_", weight).eval()
    text = merged(model.text[0].model, tensors, "lora_te_", weight).eval()
    found = []
    for index, path in enumerate(pictures):
        losses = []
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
        latent = model.encode(torch.from_numpy(pixels)[None])[0]
        caption = "zorp, " + path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        ids = model.text[0].tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states = text(ids).last_hidden_state
        for level in range(LEVELS):
            t = int((level + 0.5) * 1000 / LEVELS)
            alpha = float(model.alphas_cumprod[t])
            noise = keyed_noise(latent.shape, 0.0, "validation", index, t)
            noisy = math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * noise
            guess = unet(noisy[None], torch.tensor([t]), states).sample[0]
            losses.append(float(((guess - noise).double() ** 2).mean()))
        found.append(sum(losses) / LEVELS)
    return found


def test_each_number_is_the_loss_of_the_weights_with_the_lora_added(host: Host, session: Session, run: Run) -> None:
    weights, seen = (1.0, -0.5), []
    found = held_out_losses(host, session, run.config(), files(run), weights, lambda *count: seen.append(count))
    assert seen == [(n, 5) for n in range(1, 6)]
    cells = [(None, 0.0), *((file, w) for file in files(run) for w in weights)]
    assert [(e.file, e.weight) for e in found.entries] == [(str(f) if f else None, w) for f, w in cells]
    pictures = kept_pictures(run)
    assert (found.held_out, found.pictures, found.of, found.timesteps) == (True, len(pictures), 2, LEVELS)
    with host.session(ModelRequest.of(run.config())) as fresh:
        wanted = [np.array(plain_losses(fresh.model, pictures, file, weight)) for file, weight in cells]
    for entry, losses in zip(found.entries, wanted, strict=True):
        assert entry.losses == pytest.approx(losses, rel=1e-4)
        assert entry.loss == pytest.approx(losses.mean(), rel=1e-4)
        apart = losses - wanted[0]
        assert entry.difference.mean == pytest.approx(apart.mean(), abs=1e-5)
        assert entry.difference.se == pytest.approx(apart.std(ddof=1) / math.sqrt(len(apart)), abs=1e-5)
    assert len({round(e.loss, 6) for e in found.entries}) == len(cells)  # or the comparison above would say nothing


def test_the_numbers_are_those_that_the_run_noted(host: Host, session: Session, run: Run) -> None:
    fingerprint = run.manifest["dataset"]["fingerprint"]
    found = held_out_losses(host, session, run.config(), files(run), [1.0], fingerprint=fingerprint)
    base, _, last = found.entries
    assert found.held_out
    assert base.loss == pytest.approx(run.manifest["validation"]["base"], rel=1e-5)
    assert last.loss == pytest.approx(run.manifest["files"][-1]["metrics"]["validation"], rel=1e-5)


def test_the_model_is_used_in_short_turns_only_and_left_without_adapters(
    host: Host, session: Session, run: Run, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses: list[int] = []
    inside = [False]
    turn = session.turn
    held_out_losses(host, session, run.config(), small[:1], [1.0])  # or the number of latents to make would count
    before = {name: value.clone() for name, value in session.model.unet.state_dict().items()}
    assert not any("lora" in name for name in before)

    @contextmanager
    def watched() -> Iterator[None]:
        with turn():
            inside[0] = True
            uses.append(0)
            yield
            inside[0] = False

    def check(*_: object) -> None:
        assert inside[0], "the model was used outside of a turn"
        uses[-1] += 1

    monkeypatch.setattr(session, "turn", watched)
    monkeypatch.setattr(session, "wanted", lambda: True)
    hook = session.model.unet.register_forward_pre_hook(check)
    held_out_losses(host, session, run.config(), small, [1.0])
    hook.remove()
    assert max(uses) == 1  # somebody waits all the time, and gets the model after each call
    after = session.model.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many noise levels are measured at once, from now on."""
    sizes: list[int] = []
    plain = Denoiser.fixed_losses

    def record(self: Denoiser, index: int, latent: torch.Tensor, caption: str, timesteps: list[int]) -> torch.Tensor:
        sizes.append(len(timesteps))
        return plain(self, index, latent, caption, timesteps)

    monkeypatch.setattr(Denoiser, "fixed_losses", record)
    return sizes


@pytest.mark.parametrize(("area", "sizes"), [(64 * 64, [6]), (4 * 8 * 8, [4, 2]), (8 * 8, [1] * 6), (1, [1] * 6)])
def test_no_more_is_measured_at_once_than_the_device_takes(
    host: Host,
    session: Session,
    run: Run,
    small: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    area: int,
    sizes: list[int],
) -> None:
    config = run.config().with_values({"validation.timesteps": 6})
    whole = held_out_losses(host, session, config, small, [1.0])
    found = recorded(monkeypatch)
    monkeypatch.setitem(numbers._AREA, "cpu", area)
    split = held_out_losses(host, session, config, small, [1.0])
    assert found == sizes * (3 * 2)
    for one, other in zip(whole.entries, split.entries, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)


@pytest.mark.parametrize("seconds", [0.0, 1e-3, 0.4, 7.0])
@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_the_numbers_are_the_same_to_the_last_digit_however_slow_and_interrupted(
    host: Host,
    session: Session,
    run: Run,
    small: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    stopped: int,
) -> None:
    """On a clock that each look at moves on, killed after some cells and gone on with."""
    config = run.config().with_values({"validation.timesteps": 5})
    whole = held_out_losses(host, session, config, small, [1.0])
    ticks = itertools.count()
    monkeypatch.setattr(numbers.time, "monotonic", lambda: seconds * next(ticks))

    def stop(done: int, of: int) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held_out_losses(host, session, config, small, [1.0], stop, cache=tmp_path / "losses.json")
    gone_on = held_out_losses(host, session, config, small, [1.0], cache=tmp_path / "losses.json")
    assert [entry.losses for entry in gone_on.entries] == [entry.losses for entry in whole.entries]


# ------------------------------------------------------------------ on which pictures
def test_without_pictures_kept_aside_those_of_the_training_are_measured_and_it_says_so(
    host: Host, session: Session, run: Run, small: list[Path]
) -> None:
    config = run.config().with_values({"validation.share": 0})
    found = held_out_losses(host, session, config, small, [1.0])
    assert (found.held_out, found.pictures, found.of) == (False, 5, 5)
    items = [item.path for item in scan(config.data).items]
    with host.session(ModelRequest.of(config)) as fresh:
        assert found.entries[0].losses == pytest.approx(plain_losses(fresh.model, items, None, 0.0), rel=1e-4)


def test_of_many_pictures_a_fixed_choice_is_measured(host: Host, session: Session, run: Run, small: list[Path]) -> None:
    config = run.config().with_values({"validation.share": 0})
    every = held_out_losses(host, session, config, small[:1], [1.0]).entries[1].losses
    some, again = (held_out_losses(host, session, config, small[:1], [1.0], most=3) for _ in range(2))
    assert (some.pictures, some.of) == (3, 5)
    assert some.entries == again.entries
    measured = [round(loss, 5) for loss in some.entries[1].losses]
    assert [loss for loss in (round(loss, 5) for loss in every) if loss in measured] == measured  # with the same noise


def test_when_pictures_have_changed_since_none_counts_as_kept_aside(
    host: Host, session: Session, run: Run, small: list[Path]
) -> None:
    found = held_out_losses(host, session, run.config(), small[:1], [1.0], fingerprint="of other pictures")
    assert (found.held_out, found.of) == (False, 5)
    ((file, error),) = found.problems
    assert file == ""
    assert "have changed" in str(error)


def test_a_picture_that_cannot_be_decoded_moves_no_other_across_the_split(
    host: Host, run: Run, small: list[Path], tmp_path: Path
) -> None:
    """The run leaves such pictures out before it keeps any aside; else some that it trained on would be measured."""
    folder = tmp_path / "pictures"
    draw_pictures(folder, count=6, size=(64, 64))
    broken = folder / "01.png"
    broken.write_bytes(broken.read_bytes()[:-600])
    config = run.config().with_values({"data.folder": str(folder)})
    expected = [item for item in scan(config.data).items if item.path != broken]
    assert len(expected) == 5
    _, kept = held_out(expected, config.validation.share, config.training.seed)
    with host.session(ModelRequest.of(config)) as session:
        found = held_out_losses(host, session, config, small[:1], [1.0])
        assert found.pictures == len(kept)
        wanted = plain_losses(session.model, [item.path for item in kept], None, 0.0)
    assert found.entries[0].losses == pytest.approx(wanted, rel=1e-4)


def test_pictures_of_which_none_can_be_decoded_are_one_sentence(
    host: Host, run: Run, small: list[Path], tmp_path: Path
) -> None:
    for path in draw_pictures(tmp_path / "pictures", count=2, size=(64, 64)):
        path.write_bytes(path.read_bytes()[:-600])
    config = run.config().with_values({"data.folder": str(tmp_path / "pictures")})
    with host.session(ModelRequest.of(config)) as session, pytest.raises(InputError, match="no picture can be read"):
        held_out_losses(host, session, config, small, [1.0])


def test_pictures_that_are_gone_are_one_sentence(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path
) -> None:
    config = TrainConfig.from_dict({**document(tmp_path), "data": {"folder": str(tmp_path / "gone")}})
    with pytest.raises(InputError, match="does not exist"):
        held_out_losses(host, session, config, small, [1.0])


# ------------------------------------------------------------------ files that cannot be used
@pytest.mark.parametrize("empty", ["files", "weights"])
def test_nothing_to_measure_is_one_sentence(
    host: Host, session: Session, run: Run, small: list[Path], empty: str
) -> None:
    given = {"files": small, "weights": [1.0], empty: []}
    with pytest.raises(InputError, match="nothing to measure"):
        held_out_losses(host, session, run.config(), **given)


def test_a_weight_that_is_no_number_is_one_sentence(host: Host, session: Session, run: Run, small: list[Path]) -> None:
    with pytest.raises(InputError, match="weights"):
        held_out_losses(host, session, run.config(), small, [math.nan])


def test_a_file_that_cannot_be_used_is_one_sentence_and_the_others_go_on(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path
) -> None:
    good = small[-1]
    tensors = load_file(good)
    gone, foreign, loha, damaged = (tmp_path / f"{name}.safetensors" for name in ("gone", "foreign", "loha", "damaged"))
    save_file({k.replace("lora_te_", "lora_te1_"): v for k, v in tensors.items()}, foreign)
    save_file({k.replace("lora_down", "hada_w1_a"): v for k, v in tensors.items()}, loha)
    damaged.write_bytes(good.read_bytes()[:-100])
    seen: list[tuple[int, int]] = []
    given = [gone, foreign, good, loha, damaged]
    found = held_out_losses(host, session, run.config(), given, [1.0, 0.5], lambda *n: seen.append(n))
    assert [e.file for e in found.entries] == [None, str(good), str(good)]
    sentences = {Path(file).stem: str(error) for file, error in found.problems}
    assert sentences.keys() == {"gone", "foreign", "loha", "damaged"}
    assert "does not exist" in sentences["gone"]
    assert "another kind of checkpoint" in sentences["foreign"]
    assert "not a plain LoRA" in sentences["loha"]
    assert "damaged" in sentences["damaged"]
    assert seen[-1] == (11, 11)
    alone = held_out_losses(host, session, run.config(), [good], [1.0, 0.5])
    assert [e.losses for e in found.entries] == [pytest.approx(e.losses, rel=1e-6) for e in alone.entries]


def test_files_of_other_modules_and_ranks_are_measured_side_by_side(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path
) -> None:
    good = small[-1]
    tensors = load_file(good)
    unet_only = tmp_path / "unet.safetensors"
    save_file({k: v for k, v in tensors.items() if k.startswith("lora_unet")}, unet_only)
    rank1 = tmp_path / "rank1.safetensors"
    cuts = {"lora_down": lambda v: v[:1], "lora_up": lambda v: v[:, :1], "alpha": lambda v: v}
    parts = {name: cuts[name.split(".")[1]](value) for name, value in tensors.items()}
    save_file({name: part.clone() for name, part in parts.items()}, rank1)
    given = [good, unet_only, rank1, good]
    found = held_out_losses(host, session, run.config(), given, [1.0])
    assert not found.problems
    with host.session(ModelRequest.of(run.config())) as fresh:
        for entry, file in zip(found.entries[1:], given, strict=True):
            made = {k: v.contiguous() for k, v in load_file(file).items()}
            assert made
            wanted = plain_losses(fresh.model, kept_pictures(run), file, 1.0)
            assert entry.losses == pytest.approx(wanted, rel=1e-4)


def test_weight_0_is_the_checkpoint_alone_and_measured_once(
    host: Host, session: Session, run: Run, small: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch)
    found = held_out_losses(host, session, run.config(), small, [0.0, 1.0, 1.0])
    assert [e.weight for e in found.entries] == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert found.entries[1].losses == found.entries[3].losses == found.entries[0].losses
    assert found.entries[1].difference == Difference(0.0, 0.0, 2)
    assert calls() == 3 * 2  # three cells of two pictures


# ------------------------------------------------------------------ the cache
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pictures were measured since the last time of asking."""
    measured: list[int] = []
    plain = Denoiser.fixed_losses

    def record(self: Denoiser, index: int, latent: torch.Tensor, caption: str, timesteps: list[int]) -> torch.Tensor:
        measured.extend([index] * len(timesteps))
        return plain(self, index, latent, caption, timesteps)

    def since() -> int:
        count = len(measured) // LEVELS
        measured.clear()
        return count

    monkeypatch.setattr(Denoiser, "fixed_losses", record)
    return since


def test_a_second_call_with_one_more_file_measures_only_that_one(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "losses.json"
    calls = count_calls(monkeypatch)
    config = run.config()
    held_out_losses(host, session, config, small[:1], [0.5, 1.0], cache=cache)
    assert calls() == 3 * 2
    both = held_out_losses(host, session, config, small, [0.5, 1.0], cache=cache)
    assert calls() == 2 * 2
    again = held_out_losses(host, session, config, small, [0.5, 1.0], cache=cache)
    assert calls() == 0
    assert again.entries == both.entries
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(small[0].read_bytes())
    held_out_losses(host, session, config, [renamed], [1.0], cache=cache)
    assert calls() == 0  # known by content
    fresh = held_out_losses(host, session, config, small, [0.5, 1.0])
    for one, other in zip(both.entries, fresh.entries, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-6)


@pytest.mark.parametrize(
    "change", [{"validation.timesteps": 3}, {"validation.share": 0.2}, {"data.trigger": "other"}, {"training.seed": 6}]
)
def test_what_was_measured_otherwise_is_measured_anew(
    host: Host,
    session: Session,
    run: Run,
    small: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    cache = tmp_path / "losses.json"
    held_out_losses(host, session, run.config(), small[:1], [1.0], cache=cache)
    calls = count_calls(monkeypatch)
    held_out_losses(host, session, run.config().with_values(change), small[:1], [1.0], cache=cache)
    assert calls() > 0


def test_numbers_of_the_wrong_count_in_the_cache_are_measured_again(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "losses.json"
    held_out_losses(host, session, run.config(), small[:1], [1.0], cache=cache)
    kept = json.loads(cache.read_text(encoding="utf-8"))
    kept["numbers"] = {key: losses[:1] for key, losses in kept["numbers"].items()}
    cache.write_text(json.dumps(kept), encoding="utf-8")
    calls = count_calls(monkeypatch)
    held_out_losses(host, session, run.config(), small[:1], [1.0], cache=cache)
    assert calls() == 2 * 2


def test_what_was_measured_before_a_stop_is_kept(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "losses.json"

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        held_out_losses(host, session, run.config(), small, [1.0], stop, cache=cache)
    assert not any("lora" in name for name, _ in session.model.unet.named_parameters())
    calls = count_calls(monkeypatch)
    held_out_losses(host, session, run.config(), small, [1.0], cache=cache)
    assert calls() == 2


def test_a_long_measuring_writes_its_cache_on_the_way(
    host: Host, session: Session, run: Run, small: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "losses.json"
    monkeypatch.setattr("lora_trainer.validation.metrics.cache._WRITE_EVERY", 0.0)
    counts: list[int] = []

    def count(done: int, of: int) -> None:
        counts.append(len(json.loads(cache.read_text(encoding="utf-8"))["numbers"]))

    held_out_losses(host, session, run.config(), small, [1.0], count, cache=cache)
    assert counts == [1, 2, 3]
