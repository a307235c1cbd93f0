"""Whole runs on the small checkpoint."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.config.train import SCHEDULERS, TrainConfig
from lora_trainer.core.files import replace_atomically
from lora_trainer.diffusion.denoiser import Denoiser
from lora_trainer.hosts.standalone.checkpoint import Checkpoint
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.hosts.standalone.session import StandaloneSession
from lora_trainer.model.text import TextEncoder
from lora_trainer.network.lora_file import describe
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run
from lora_trainer.training import loop as run_module
from lora_trainer.training import preparation as work_module
from lora_trainer.training.optimizers import KINDS
from lora_trainer.training.trainer import Trainer
from tests.runs_helpers import document, make_jobs, run_to_end, weights


@pytest.fixture(autouse=True)
def _a_slice_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SLICE_SECONDS", 0.0)


def names(run: Run) -> list[str]:
    return [Path(entry["path"]).name for entry in run.manifest["files"]]


def test_a_run_leaves_files_log_and_cards(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__steps=0, training__epochs=3, save__every_epochs=1, save__every_steps=5)
    assert run.state == "done"
    assert names(run) == [
        "zorp-000001.safetensors",
        "zorp-step00000005.safetensors",
        "zorp-000002.safetensors",
        "zorp.safetensors",
    ]
    assert run.manifest["step"] == run.manifest["steps"] == 9
    assert [e["step"] for e in run.entries()] == list(range(1, 10))
    for entry in run.manifest["files"]:
        path = Path(entry["path"])
        assert path.parent == tmp_path / "models" / "Lora" / "zorp"
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert (card["activation text"], card["sd version"], card["preferred weight"]) == ("zorp", "SD1", 0.8)
    with Image.open(path.with_suffix(".png")) as preview:
        assert preview.size == (64, 64)


@pytest.mark.parametrize("wish", ["", "pause"])
def test_a_run_has_ended_when_the_host_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    states: list[str] = []
    jobs = make_jobs(tmp_path)
    session = StandaloneHost.session

    @contextmanager
    def watched(self: StandaloneHost, config: TrainConfig) -> Iterator[StandaloneSession]:
        with session(self, config) as held:
            yield held
        states.append(run.state)

    monkeypatch.setattr(StandaloneHost, "session", watched)
    jobs._on_change = lambda run: (
        wish and run.manifest["step"] == 1 and jobs.training.current().control.ask(StopRequest(wish))
    )
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path)))
    jobs.wait(run)
    assert (states, run.state) == (["running"], "paused" if wish else "done")


def test_the_file_has_the_metadata_of_the_run(tmp_path: Path) -> None:
    run = run_to_end(tmp_path)
    with safe_open(run.manifest["files"][-1]["path"], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_output_name"] == "zorp"
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_steps"] == "3"
    assert metadata["modelspec.trigger_phrase"] == "zorp"
    assert json.loads(metadata["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 1, "img_count": 5}}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training__text_lr": 1e-3, "network__dropout": 0.1, "data__flip": True}
    first = run_to_end(tmp_path / "a", **changes)
    second = run_to_end(tmp_path / "b", **changes)
    third = run_to_end(tmp_path / "c", training__seed=7, **changes)
    assert weights(first) == weights(second)
    assert weights(first) != weights(third)


@pytest.mark.parametrize("text_lr", [0, 1e-3])
@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_and_resumed_run_equals_one_never_stopped(tmp_path: Path, at: int, text_lr: float) -> None:
    changes: dict[str, Any] = {"training__steps": 5, "training__text_lr": text_lr, "network__dropout": 0.2}
    whole = run_to_end(tmp_path / "whole", **changes)
    jobs = make_jobs(tmp_path / "parts")
    stopping = jobs._on_change = lambda run: (
        run.manifest["step"] == at and jobs.training.current().control.ask(StopRequest.PAUSE)
    )
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path / "parts", **changes)))
    jobs.wait(run)
    assert (run.state, run.manifest["step"], stopping is None) == ("paused", at, False)
    again = make_jobs(tmp_path / "parts")  # as another process would
    run = again.resume("zorp")
    again.wait(run)
    assert run.state == "done"
    assert weights(run) == weights(whole)
    assert [e["loss"] for e in run.entries()] == [e["loss"] for e in whole.entries()]
    assert run.manifest["loss_average"] == whole.manifest["loss_average"]
    last, expected = run.manifest["files"][-1], whole.manifest["files"][-1]
    assert (last["metrics"], last["tensors_sha256"]) == (expected["metrics"], expected["tensors_sha256"])


def test_a_resumed_run_tells_when_it_began_and_only_the_times_of_its_files_differ(tmp_path: Path) -> None:
    whole = run_to_end(tmp_path / "whole")
    jobs = make_jobs(tmp_path / "parts")
    jobs._on_change = lambda run: run.manifest["step"] == 1 and jobs.training.current().control.ask(StopRequest.PAUSE)
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path / "parts")))
    jobs.wait(run)
    began = run.manifest["started"]
    again = make_jobs(tmp_path / "parts")
    run = again.resume("zorp")
    again.wait(run)
    assert run.manifest["started"] == began
    headers = []
    for each in (run, whole):
        with safe_open(each.manifest["files"][-1]["path"], framework="pt") as file:
            headers.append(file.metadata())
    assert float(headers[0]["ss_training_started_at"]) == began
    times = {"ss_training_started_at", "ss_training_finished_at", "ss_session_id", "modelspec.date"}
    differing = {key for key in headers[0].keys() | headers[1].keys() if headers[0].get(key) != headers[1].get(key)}
    assert differing <= times
    assert headers[0]["sshs_model_hash"] == run.manifest["files"][-1]["tensors_sha256"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_no_number_is_told_and_breaks_no_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: float
) -> None:
    real = Denoiser.held_out_loss
    calls: list[int] = []

    def held_out_loss(self: Denoiser, *args: Any) -> float:
        calls.append(1)
        return broken if len(calls) == 3 else real(self, *args)

    monkeypatch.setattr(Denoiser, "held_out_loss", held_out_loss)
    run = run_to_end(tmp_path, training__steps=0, training__epochs=2, validation__share=0.4, validation__timesteps=2)
    assert run.state == "done"
    assert len(calls) == 3  # of the checkpoint alone, and after each epoch
    validation = run.manifest["validation"]
    assert validation["last"] is None
    assert validation["best"] == run.manifest["files"][0]["metrics"]["validation"] or len(run.manifest["files"]) == 1
    assert "validation loss at step 4 is no number" in run.manifest["message"]
    for path in (run.folder / "manifest.json", *run.folder.glob("log.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=pytest.fail)
    assert [e["validation"] for e in run.entries() if "validation" in e][-1] is None
    make_jobs(tmp_path).settled("zorp")


def test_another_vae_does_not_matter_to_a_run_that_has_its_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_to_end(tmp_path / "whole", training__steps=4)
    jobs = make_jobs(tmp_path / "parts")
    jobs._on_change = lambda run: run.manifest["step"] == 2 and jobs.training.current().control.ask(StopRequest.PAUSE)
    run = jobs.submit(TrainConfig.from_dict(document(tmp_path / "parts", training__steps=4)))
    jobs.wait(run)
    own = Checkpoint.view
    monkeypatch.setattr(Checkpoint, "view", lambda self, *known: replace(own(self, *known), vae_key="another"))
    cached = sorted((tmp_path / "parts" / "cache" / "latents").rglob("*.safetensors"))
    kept = cached[0].read_bytes()
    cached[0].unlink()
    again = make_jobs(tmp_path / "parts")
    again.wait(run := again.resume("zorp"))
    assert run.state == "failed"
    assert "another VAE" in run.manifest["message"]
    cached[0].write_bytes(kept)
    again.wait(run := again.resume("zorp"))
    assert run.state == "done", run.manifest["message"]
    assert weights(run) == weights(whole)


def test_stop_keeps_what_was_learned_and_discard_does_not(tmp_path: Path) -> None:
    for name, wish, files in (("kept", "stop", ["kept-step00000002.safetensors"]), ("gone", "discard", [])):
        jobs = make_jobs(tmp_path)
        jobs._on_change = lambda run, w=wish, j=jobs: (
            run.manifest["step"] == 2 and j.training.current().control.ask(StopRequest(w))
        )
        run = jobs.submit(TrainConfig.from_dict(document(tmp_path, name, training__steps=50)))
        jobs.wait(run)
        assert (run.state, names(run)) == ("stopped", files)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def noted(*arguments: Any, **options: Any) -> Any:
        recomputed.append(1)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", noted)
    plain = run_to_end(tmp_path / "a", save__precision="fp32")
    assert not recomputed
    saved = run_to_end(tmp_path / "b", save__precision="fp32", training__checkpointing=True)
    assert recomputed
    one, other = (load_file(run.manifest["files"][-1]["path"]) for run in (plain, saved))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", [name for name, kind in KINDS.items() if kind.installed])
def test_every_installed_optimizer_trains(tmp_path: Path, optimizer: str) -> None:
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    run = run_to_end(tmp_path, training__optimizer=optimizer, training__unet_lr=rate)
    assert run.state == "done", run.manifest["message"]
    up = [v for k, v in load_file(run.manifest["files"][-1]["path"]).items() if "lora_up" in k]
    assert sum(float(v.abs().sum()) for v in up) > 0


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_runs(tmp_path: Path, scheduler: str) -> None:
    warmup = 0 if scheduler == "constant" else 0.5
    run = run_to_end(tmp_path, training__scheduler=scheduler, training__warmup=warmup, training__steps=4)
    rates = [e["lr"]["unet"] for e in run.entries()]
    assert len(rates) == 4
    assert rates[0] == (0.01 if scheduler == "constant" else 0.0)


def test_bf16_trains_with_fp32_adapters(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__precision="bf16", save__precision="fp32")
    assert run.state == "done", run.manifest["message"]
    assert run.manifest["precision"] == "bf16"
    down = next(v for k, v in load_file(run.manifest["files"][-1]["path"]).items() if "lora_down" in k)
    assert not torch.equal(down, down.bfloat16().float())


def test_fp16_on_a_cpu_is_refused_in_one_sentence(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__precision="fp16")
    assert run.state == "failed"
    assert "needs a graphics card" in run.manifest["message"]


@pytest.mark.parametrize(
    ("changes", "unet", "text"),
    [
        ({}, 192, 0),
        ({"training__text_lr": 1e-3}, 192, 72),
        ({"training__unet_lr": 0, "training__text_lr": 1e-3}, 0, 72),
        ({"network__targets": "attention+conv"}, 278, 0),
    ],
)
def test_what_is_trained(tmp_path: Path, changes: dict[str, Any], unet: int, text: int) -> None:
    info = describe(Path(run_to_end(tmp_path, **changes).manifest["files"][-1]["path"]))
    assert (info["unet_modules"], info["text_modules"]) == (unet, text)


def test_continuing_begins_with_the_files_weights(tmp_path: Path) -> None:
    first = run_to_end(tmp_path / "a", save__precision="fp32")
    path = first.manifest["files"][-1]["path"]
    second = run_to_end(tmp_path / "b", network__continue_from=path, training__unet_lr=1e-12, save__precision="fp32")
    one, other = load_file(path), load_file(second.manifest["files"][-1]["path"])
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-8)


def test_continuing_with_another_rank_names_the_right_one(tmp_path: Path) -> None:
    path = run_to_end(tmp_path / "a").manifest["files"][-1]["path"]
    run = run_to_end(tmp_path / "b", network__continue_from=path, network__rank=4)
    assert run.state == "failed"
    assert "rank 2 and alpha 1" in run.manifest["message"]


def test_nan_stops_the_run_keeps_files_and_names_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.step

    def poisoned(self: Trainer, step: Any) -> torch.Tensor:
        loss = original(self, step)
        return loss * float("nan") if step.number == 3 else loss

    monkeypatch.setattr(Trainer, "step", poisoned)
    run = run_to_end(tmp_path, training__steps=5, save__every_steps=2)
    assert run.state == "failed"
    assert names(run) == ["zorp-step00000002.safetensors"]
    assert "NaN" in run.manifest["message"]
    assert "learning rate" in run.manifest["message"]


def test_a_full_disk_while_saving_keeps_the_earlier_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: Any, **options: Any) -> None:
        if path.name == "zorp.safetensors":

            def write(temporary: Path) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        replace_atomically(path, write, **options)  # fmt: skip

    monkeypatch.setattr("lora_trainer.network.lora_file.replace_atomically", full)
    run = run_to_end(tmp_path, training__steps=4, save__every_steps=2, save__every_epochs=0)
    assert run.state == "failed"
    assert "disk is full" in run.manifest["message"]
    assert names(run) == ["zorp-step00000002.safetensors"]
    assert not (tmp_path / "models" / "Lora" / "zorp" / "zorp.safetensors").exists()


def test_a_sample_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: StandaloneSession, *arguments: Any) -> None:
        raise RuntimeError("no picture today")

    monkeypatch.setattr(StandaloneSession, "draw", broken)
    run = run_to_end(tmp_path, samples__prompts=["zorp"], samples__every_steps=1)
    assert run.state == "done"
    assert "no picture today" in run.manifest["message"]
    assert not list(run.samples.glob("*.safetensors"))


def test_samples_are_drawn_when_due(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, samples__prompts=["zorp", "red circle"], samples__every_steps=2, save__every_epochs=0)
    assert [(s["step"], s["prompt"]) for s in run.manifest["samples"]] == [
        (2, "zorp"), (2, "red circle"), (3, "zorp"), (3, "red circle"),
    ]  # fmt: skip
    assert all(Path(s["path"]).is_file() for s in run.manifest["samples"])


def test_a_damaged_picture_is_skipped_and_counted(tmp_path: Path) -> None:
    settings = document(tmp_path)
    path = tmp_path / "pictures" / "02.png"
    path.write_bytes(path.read_bytes()[:200])
    jobs = make_jobs(tmp_path)
    run = jobs.submit(TrainConfig.from_dict(settings))
    jobs.wait(run)
    assert run.state == "done"
    assert run.manifest["dataset"]["pictures"] == 4
    assert "02.png" in run.manifest["dataset"]["skipped"][0]


def test_validation_measures_base_and_lora_on_pictures_kept_aside(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__steps=0, training__epochs=2, validation__share=0.4, validation__timesteps=2)
    validation = run.manifest["validation"]
    assert validation["base"] > 0
    assert validation["last"] != validation["base"]
    assert run.manifest["dataset"]["held_out"] == 2
    assert run.manifest["steps_per_epoch"] == 2  # three pictures left


def test_the_file_tells_of_the_pictures_that_were_learned_from(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, data__repeats=3, training__steps=1, validation__share=0.4, validation__timesteps=1)
    path = Path(run.manifest["files"][-1]["path"])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_num_train_images"], metadata["ss_num_validation_images"]) == ("9", "2")
    assert json.loads(metadata["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 3, "img_count": 3}}
    assert json.loads(metadata["ss_tag_frequency"])["pictures"]["zorp"] == 3
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"]["count"] == 9
    assert "with 3 pictures" in json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["description"]


def test_memory_that_runs_out_halves_the_pictures_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake card that holds one picture: the step is done in parts, and nothing but rounding changes."""
    whole = run_to_end(tmp_path / "whole", training__batch_size=4, save__precision="fp32")
    original = Trainer._losses

    def small_card(self: Trainer, step: int, first: int, batch: Any, captions: Any) -> torch.Tensor:
        if len(batch) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(self, step, first, batch, captions)

    monkeypatch.setattr(Trainer, "_losses", small_card)
    parts = run_to_end(tmp_path / "parts", training__batch_size=4, save__precision="fp32")
    assert parts.state == "done"
    assert "1 at a time" in parts.manifest["message"]
    losses = [[e["loss"] for e in run.entries()] for run in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_memory_that_never_suffices_ends_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_card(*arguments: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Trainer, "_losses", no_card)
    run = run_to_end(tmp_path)
    assert run.state == "failed"
    assert "lower the resolution" in run.manifest["message"]


def test_latents_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_to_end(tmp_path, "first")
    encoded: list[Path] = []
    original = work_module.LatentCache.fill

    def counted(self: Any, wanted: Any, encode: Any) -> Any:
        encoded.extend(entry.item.path for entry in wanted)
        return original(self, wanted, encode)

    monkeypatch.setattr(work_module.LatentCache, "fill", counted)
    run_to_end(tmp_path, "second")
    assert encoded == []


def test_each_shuffled_caption_of_a_frozen_encoder_is_encoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = TextEncoder.__call__

    def noted(self: TextEncoder, captions: Sequence[str]) -> Any:
        if len(captions) == 1:  # for a picture, its prompt is encoded together with what it shall not show
            encoded.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(TextEncoder, "__call__", noted)
    run_to_end(tmp_path, data__shuffle=True, data__caption_variants=3, data__caption_dropout=0.5, training__steps=12)
    assert len(encoded) == len(set(encoded))
    assert "" in encoded  # left out
    assert len(encoded) > 1 + 5  # several orders of the tags of five pictures


@pytest.mark.parametrize(("loaded", "kept"), [(4, ["00000003", "00000004"]), (3, ["00000002", "00000003", "00000004"])])
def test_a_state_too_many_goes_when_the_newest_could_be_read(tmp_path: Path, loaded: int, kept: list[str]) -> None:
    """One stays when a process is killed between writing a state and deleting the last but two."""
    for step in (2, 3, 4):
        (tmp_path / f"step-{step:08d}.safetensors").touch()
    work_module._remove_surplus(tmp_path, loaded)
    assert sorted(path.stem.removeprefix("step-") for path in tmp_path.iterdir()) == kept
    work_module._remove_surplus(tmp_path / "missing", 0)
