from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as safetensors_bytes

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.model.precision import grad_scaler
from lora_trainer.training.optimizers import KINDS, Group, build_optimizer, build_schedule
from lora_trainer.training.state import load_newest, save_state, states
from tests.helpers import config, temporary_files
from tools.soak.damage import damages

INSTALLED = [name for name, kind in KINDS.items() if kind.installed and name != "AdamW8bit"]


class Weights:
    """Stands in for the adapters: two tensors under kohya's names."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.down = torch.nn.Parameter(torch.randn(2, 5, generator=rng))
        self.up = torch.nn.Parameter(torch.randn(3, 2, generator=rng))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"a.lora_down.weight": self.down.detach().clone(), "a.lora_up.weight": self.up.detach().clone()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        if tensors.keys() != self.state_dict().keys():
            raise InputError("the file and this run train different layers")
        with torch.no_grad():
            self.down.copy_(tensors["a.lora_down.weight"])
            self.up.copy_(tensors["a.lora_up.weight"])


class Trainer:
    """The parts of a trainer that a state is made of."""

    def __init__(self, optimizer: str = "AdamW", *, one_group: bool = False) -> None:
        rate = 1.0 if optimizer == "Prodigy" else 0.05
        settings = config(
            training__optimizer=optimizer, training__unet_lr=rate, training__text_lr=rate, training__scheduler="cosine"
        )
        self.adapters = Weights()
        down, up = self.adapters.down, self.adapters.up
        groups = [Group("unet", [down], rate), Group("text", [up], rate)]
        if one_group:
            groups = [Group("unet", [down, up], rate)]
        self.optimizer = build_optimizer(settings, groups)
        self.lr_schedule = build_schedule(settings, self.optimizer, 2, 20)
        self.scaler = grad_scaler("fp32", torch.device("cpu"))

    def learn(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            target = torch.randn(3, 5, generator=torch.Generator().manual_seed(step))
            ((self.adapters.up @ self.adapters.down - target) ** 2).sum().backward()
            self.optimizer.step()
            self.lr_schedule.step()
            self.optimizer.zero_grad(set_to_none=True)

    def everything(self) -> dict[str, Any]:
        return {"w": self.adapters.state_dict(), "o": self.optimizer.state_dict(), "s": self.lr_schedule.state_dict()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def trained(folder: Path, *saved_at: int, optimizer: str = "AdamW") -> Trainer:
    trainer, done = Trainer(optimizer), 0
    for step in saved_at:
        trainer.learn(done + 1, step)
        save_state(folder, trainer, step)
        done = step
    return trainer


@pytest.mark.parametrize("optimizer", INSTALLED)
def test_state_comes_back_exactly_and_training_goes_on_as_if_never_stopped(tmp_path: Path, optimizer: str) -> None:
    before = trained(tmp_path, 4, optimizer=optimizer)
    resumed = Trainer(optimizer)
    assert load_newest(tmp_path, resumed) == 4
    assert same(resumed.everything(), before.everything())
    for trainer in (before, resumed):
        trainer.learn(5, 9)
    assert same(resumed.everything(), before.everything())


def test_new_run_has_no_state(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert load_newest(folder, Trainer()) == 0


def test_only_the_last_two_states_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, 1, 2, 9, 10)
    assert [p.name for p in states(tmp_path)] == ["step-00000010.safetensors", "step-00000009.safetensors"]
    assert len(list(tmp_path.iterdir())) == 2


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-99999999.safetensors.bak", "step-1.safetensors", "notes.txt", ".step-00000099.safetensors.tmp"):
        (tmp_path / name).write_text("x")
    trained(tmp_path, 1, 2, 3)
    assert load_newest(tmp_path, Trainer()) == 3
    assert len(list(tmp_path.iterdir())) == 6


def without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def with_metadata(text: str) -> Callable[[Path], None]:
    return lambda path: save_file(load_file(path), path, {"state": text})


def without(part: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        del tensors[next(name for name in tensors if part in name)]
        save_file(tensors, path, metadata)

    return damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff" * 1000),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "no metadata": without_metadata,
    "broken metadata": with_metadata("{"),
    "empty metadata": with_metadata("{}"),
    "other metadata": with_metadata("[1]"),
    "no moment": without("exp_avg"),
    "no adapter": without("lora_up"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a bit of a weight": lambda path: flip(path, -5),
    "a bit of the optimizer": lambda path: flip(path, -60),
    "a bit of the rate": lambda path: path.write_bytes(path.read_bytes().replace(b"0.05", b"0.01")),
    "a bit of the checksum's name": lambda path: path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"sha257"')),
    "another type": lambda path: path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_newest_state_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = trained(tmp_path, 3).everything()
    trained(tmp_path, 3, 7)
    DAMAGE[damage](tmp_path / "step-00000007.safetensors")
    resumed = Trainer()
    assert load_newest(tmp_path, resumed) == 3
    assert same(resumed.everything(), wanted)
    assert "step-00000007.safetensors cannot be used" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_readable_state_is_an_error_not_a_new_start(tmp_path: Path, damage: str) -> None:
    trained(tmp_path, 3, 7)
    for path in states(tmp_path):
        DAMAGE[damage](path)
    with pytest.raises(RunError, match=r"No saved state in .* can be read .*start the run again under a new name"):
        load_newest(tmp_path, Trainer())


def test_every_flipped_bit_of_a_state_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    wanted = trained(tmp_path, 3).everything()
    (path,) = states(tmp_path)
    content = path.read_bytes()
    for place in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        resumed = Trainer()
        try:
            load_newest(tmp_path, resumed)
        except RunError:
            continue
        assert same(resumed.everything(), wanted)


def test_state_of_an_earlier_version_without_checksum_is_still_used(tmp_path: Path) -> None:
    wanted = trained(tmp_path, 3).everything()
    (path,) = states(tmp_path)
    with safe_open(path, "pt") as file:
        text = file.metadata()["state"]
    with_metadata(text)(path)
    resumed = Trainer()
    assert load_newest(tmp_path, resumed) == 3
    assert same(resumed.everything(), wanted)


def test_folder_among_old_states_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-00000001.safetensors" / "mine").mkdir(parents=True)
    trained(tmp_path, 2, 3, 4)
    assert [p.name[5:13] for p in states(tmp_path)] == ["00000004", "00000003", "00000001"]


def test_folder_in_a_states_place_is_kept_under_another_name(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / "step-00000003.safetensors" / f"mine {n}").mkdir(parents=True)
        wanted = trained(tmp_path, 3).everything()
        resumed = Trainer()
        assert load_newest(tmp_path, resumed) == 3
        assert same(resumed.everything(), wanted)
        assert (tmp_path / f"step-00000003.safetensors ({n + 1})" / f"mine {n}").is_dir()
        (tmp_path / "step-00000003.safetensors").unlink()


@pytest.mark.parametrize("layout", ["turned", "strided", "half"])
def test_weights_of_any_layout_and_type_are_kept(tmp_path: Path, layout: str) -> None:
    trainer = Trainer()
    whole = trainer.adapters.state_dict()
    odd = {
        "turned": lambda tensor: tensor.t().contiguous().t(),
        "strided": lambda tensor: tensor.repeat_interleave(2, dim=1)[:, ::2],
        "half": lambda tensor: tensor.to(torch.bfloat16),
    }[layout]
    trainer.adapters.state_dict = lambda: {name: odd(tensor) for name, tensor in whole.items()}  # type: ignore[method-assign]
    kept = load_file(save_state(tmp_path, trainer, 1))
    for name, tensor in whole.items():
        assert torch.equal(kept[f"adapter.{name}"], odd(tensor))


def test_state_is_no_pickle(tmp_path: Path) -> None:
    path = save_state(tmp_path, trained(tmp_path, 2), 5)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["state"])["step"] == 5
    assert b"torch._utils" not in content


def test_what_cannot_be_written_as_plain_values_is_refused(tmp_path: Path) -> None:
    trainer = Trainer()
    trainer.optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(TypeError, match=r"optimizer\.param_groups\.0\.odd is a object, which cannot be saved"):
        save_state(tmp_path, trainer, 1)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_older_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(tmp_path, 3, 7)

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="The disk is full"):
        save_state(tmp_path, trainer, 9)
    assert [p.name for p in states(tmp_path)] == ["step-00000007.safetensors", "step-00000003.safetensors"]
    assert not temporary_files(tmp_path)


# ------------------------------------------------------------------ its JSON, damaged
def rewrite(path: Path, change: Callable[[dict[str, Any]], object], *, hashed: bool) -> None:
    """Change a state's JSON; ``hashed``: as an earlier version wrote it, without a hash that would tell."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plain = json.loads(metadata["state"])
    change(plain)
    metadata["state"] = json.dumps(plain)
    if not hashed:
        metadata.pop("sha256", None)
    path.write_bytes(safetensors_bytes(tensors, metadata))


def test_any_change_of_the_json_is_noticed_by_its_hash(tmp_path: Path) -> None:
    trainer = Trainer()
    for step in (1, 2):
        trainer.learn(step, step)
        save_state(tmp_path, trainer, step)
    group = lambda plain: dict(plain["optimizer"]["items"])["param_groups"]["list"][0]["items"]  # noqa: E731
    rewrite(states(tmp_path)[0], lambda plain: group(plain).__setitem__(0, ["lr", 0.051]), hashed=True)
    assert load_newest(tmp_path, Trainer()) == 1


@pytest.mark.parametrize("wrong", [None, "x", [], {}, {"items": [["lr", "x"]]}, {"tensor": "nobody"}, -1, [[["x"]]]])
@pytest.mark.parametrize("key", ["step", "optimizer", "lr_schedule", "scaler"])
def test_of_a_state_without_a_hash_what_has_another_form_is_not_used(tmp_path: Path, key: str, wrong: Any) -> None:
    trainer = Trainer()
    for step in (1, 2):
        trainer.learn(step, step)
        save_state(tmp_path, trainer, step)
    newest = states(tmp_path)[0]
    rewrite(newest, lambda plain: plain.__setitem__(key, wrong), hashed=False)
    same = key == "scaler" and isinstance(wrong, dict)  # one that is switched off has nothing to read
    assert load_newest(tmp_path, Trainer()) == (2 if same else 1)
    rewrite(newest, lambda plain: plain.pop(key), hashed=False)
    assert load_newest(tmp_path, Trainer()) == 1


@pytest.mark.parametrize("place", ["param_groups", "lr", "betas"])
def test_settings_of_another_kind_deep_within_are_not_used(tmp_path: Path, place: str) -> None:
    trainer = Trainer()
    for step in (1, 2):
        trainer.learn(step, step)
        save_state(tmp_path, trainer, step)

    def change(plain: dict[str, Any]) -> None:
        items = dict(plain["optimizer"]["items"])
        if place != "param_groups":
            group = items["param_groups"]["list"][0]["items"]
            group[:] = [[key, "high" if key == place else value] for key, value in group]
        else:
            items["param_groups"]["list"].pop()

    rewrite(states(tmp_path)[0], change, hashed=False)
    assert load_newest(tmp_path, Trainer()) == 1


@pytest.mark.parametrize(("optimizer", "every"), [("AdamW", 11), ("Adafactor", 1)])
def test_of_a_state_without_a_hash_whatever_is_damaged_is_refused_or_trains_on(
    tmp_path: Path, optimizer: str, every: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    trained(tmp_path, 2, optimizer=optimizer)
    (path,) = states(tmp_path)
    with safe_open(path, "pt") as file:
        plain = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    used = 0
    for name, made in list(damages(plain))[::every]:
        path.write_bytes(safetensors_bytes(tensors, {"state": json.dumps(made)}))
        resumed = Trainer(optimizer)
        try:
            load_newest(tmp_path, resumed)
        except RunError:
            continue
        used += 1
        assert ".exp_avg" not in name
        resumed.learn(3, 3)
    assert used  # among others those of a rate that is another number


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_a_moment_under_another_name_is_not_used(tmp_path: Path, key: str) -> None:
    trained(tmp_path, 1, 2)

    def change(plain: dict[str, Any]) -> None:
        (_, entry), *_ = dict(plain["optimizer"]["items"])["state"]["items"]
        entry["items"] = [["x" if name == key else name, value] for name, value in entry["items"]]

    rewrite(states(tmp_path)[0], change, hashed=False)
    assert load_newest(tmp_path, Trainer()) == 1


def two_states(folder: Path, optimizer: str) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    """States of two steps of unlike parameters in one group; the newer one's file, document and tensors."""
    trainer = Trainer(optimizer, one_group=True)
    for step in (1, 2):
        trainer.learn(step, step)
        save_state(folder, trainer, step)
    newest = states(folder)[0]
    with safe_open(newest, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return newest, json.loads(file.metadata()["state"]), tensors


@pytest.mark.parametrize("optimizer", INSTALLED)
@pytest.mark.parametrize("named", [[0, 0], [1, 1], [1, 0], [0, 7], [0, -1], [0]])
def test_moments_of_another_parameter_are_not_used(tmp_path: Path, optimizer: str, named: list[int]) -> None:
    """A fused step with them writes over the process's memory; the WebUI would end, some time later."""
    newest, plain, tensors = two_states(tmp_path, optimizer)
    group = dict(dict(plain["optimizer"]["items"])["param_groups"]["list"][0]["items"])
    assert group["params"] == {"list": [0, 1]}
    group["params"]["list"] = named
    newest.write_bytes(safetensors_bytes(tensors, {"state": json.dumps(plain)}))
    assert load_newest(tmp_path, Trainer(optimizer, one_group=True)) == 1


SHAPES = [(1, 1), (2, 5), (300, 200), (2, 3)]


@pytest.mark.parametrize(
    ("optimizer", "key", "shape"),
    [
        *[(optimizer, "exp_avg", shape) for optimizer in INSTALLED if optimizer != "Adafactor" for shape in SHAPES],
        *[("AdamW", key, shape) for key in ("exp_avg", "exp_avg_sq") for shape in [(), (6,), (0,), (1,)]],
        *[("AdamW", "step", shape) for shape in [(6,), (0,), (1,), (3, 2)]],
    ],
)
def test_moments_of_another_shape_are_not_used(
    tmp_path: Path, optimizer: str, key: str, shape: tuple[int, ...]
) -> None:
    newest, plain, tensors = two_states(tmp_path, optimizer)
    name = f"optimizer.state.1.{key}"
    assert tensors[name].shape == (() if key == "step" else (3, 2))
    tensors[name] = torch.zeros(shape)
    newest.write_bytes(safetensors_bytes(tensors, {"state": json.dumps(plain)}))
    assert load_newest(tmp_path, Trainer(optimizer, one_group=True)) == 1
