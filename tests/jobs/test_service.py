"""The line of runs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from lora_trainer.config.train import TrainConfig
from lora_trainer.core.errors import InputError, NotFound
from lora_trainer.dataset import scan
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.queue import QueuedJob
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import Control, StopRequest
from lora_trainer.training import preparation
from tests.helpers import CASES, LIMIT, draw_pictures, until
from tests.runs_helpers import at_step, document, make_jobs, run_to_end, when


def submit(jobs: Jobs, root: Path, name: str, **changes: object):
    return jobs.submit(TrainConfig.from_dict(document(root, name, **changes)))


def test_runs_are_done_one_after_another(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    order: list[str] = []
    jobs._on_change = lambda run: order.append(run.name)
    runs = [submit(jobs, tmp_path, name) for name in ("one", "two", "three")]
    assert [r.state for r in runs[1:]] == ["queued", "queued"]
    assert all(jobs.wait(run, LIMIT) for run in runs)
    assert [r.state for r in runs] == ["done"] * 3
    assert order == sorted(order, key=["one", "two", "three"].index)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often host, data set and settings are looked at from now on."""
    found: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for place in (scan, preparation):
        count(place, "scan")
    count(StandaloneHost, "check")
    count(TrainConfig, "from_toml")
    return found


def test_what_is_submitted_is_looked_at_once_and_used_by_the_run(tmp_path: Path, looks: Counter[str]) -> None:
    jobs = make_jobs(tmp_path)
    first = submit(jobs, tmp_path, "first")
    assert jobs.wait(first, LIMIT)
    assert first.state == "done"
    assert looks == {"scan": 1, "check": 2}  # the host looks once more when the run takes hold of the model


def test_a_run_that_waits_looks_again_at_pictures_and_settings_that_may_have_changed(
    tmp_path: Path, looks: Counter[str]
) -> None:
    jobs, go = make_jobs(tmp_path), threading.Event()
    jobs.training.add(QueuedJob(None, lambda control: go.wait(LIMIT)))
    second = submit(jobs, tmp_path, "second", training__steps=1)
    assert looks == {"scan": 1, "check": 1}
    draw_pictures(tmp_path / "pictures", count=6, size=(64, 64))
    go.set()
    assert jobs.wait(second, LIMIT)
    assert (second.manifest["dataset"]["pictures"], looks) == (6, {"scan": 2, "check": 2, "from_toml": 1})


def test_the_runs_of_a_sweep_look_at_their_data_set_once(tmp_path: Path, looks: Counter[str]) -> None:
    jobs, go = make_jobs(tmp_path), threading.Event()
    jobs.training.add(QueuedJob(None, lambda control: go.wait(LIMIT)))
    runs = jobs.sweep(TrainConfig.from_dict(document(tmp_path)), {"network.rank": [2, 4], "data.repeats": [1, 2]})
    assert (len(runs), looks) == (4, {"scan": 2, "check": 4})
    for run in runs:
        jobs.stop(run.name)
    go.set()


def test_a_failed_run_does_not_stop_the_next(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    bad = submit(jobs, tmp_path, "bad", training__precision="fp16")
    good = submit(jobs, tmp_path, "good")
    assert jobs.wait(good, LIMIT)
    assert (bad.state, good.state) == ("failed", "done")


def test_a_waiting_run_can_be_taken_out(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    first = submit(jobs, tmp_path, "first")
    second = submit(jobs, tmp_path, "second")
    jobs.stop("second")
    assert jobs.wait(first, LIMIT)
    assert second.state == "stopped"
    assert second.manifest["step"] == 0


def test_a_taken_name_is_refused_with_a_free_one(tmp_path: Path) -> None:
    run_to_end(tmp_path, "zorp")
    (tmp_path / "models" / "Lora" / "zorp-2").mkdir()
    with pytest.raises(InputError, match="for example zorp-3"):
        submit(make_jobs(tmp_path), tmp_path, "zorp")


def test_a_folder_of_loras_with_the_name_is_not_written_into(tmp_path: Path) -> None:
    theirs = tmp_path / "models" / "Lora" / "mine"
    theirs.mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        submit(make_jobs(tmp_path), tmp_path, "mine")
    assert list(theirs.iterdir()) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("folder", ["../elsewhere", "/elsewhere", "sub/../../.."])
def test_a_served_program_keeps_its_output_within_the_lora_folder(tmp_path: Path, folder: str) -> None:
    jobs = make_jobs(tmp_path, confined=True)
    with pytest.raises(InputError, match="outside"):
        submit(jobs, tmp_path, "zorp", save__folder=folder)


def test_an_output_folder_within_the_lora_folder_is_used(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, save__folder="people/hanfu")
    assert Path(run.manifest["files"][-1]["path"]).parent == tmp_path / "models" / "Lora" / "people" / "hanfu"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training__optimizer": "AdamW8bit"}, "pip install bitsandbytes"),
        ({"network__continue_from": "missing.safetensors"}, "does not exist"),
        ({"network__continue_from": "lora.pt"}, "not a .safetensors file"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_trainer.training.optimizers.OptimizerKind.installed", False)
    if "training__optimizer" not in changes:
        monkeypatch.undo()
    with pytest.raises(InputError, match=part.replace(".", r"\.")):
        submit(make_jobs(tmp_path), tmp_path, "zorp", **changes)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "models").exists()


def test_an_sdxl_lora_to_continue_from_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "xl.safetensors"
    save_file({"lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(1, 1)}, path)
    with pytest.raises(InputError, match="another kind of checkpoint"):
        submit(make_jobs(tmp_path), tmp_path, "zorp", network__continue_from=str(path))


def test_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    jobs.host.checkpoint = ""  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="name the checkpoint file"):
        submit(jobs, tmp_path, "zorp")


def test_only_a_stopped_run_can_be_resumed(tmp_path: Path) -> None:
    run_to_end(tmp_path, "zorp")
    jobs = make_jobs(tmp_path)
    with pytest.raises(InputError, match=r"zorp is done; .* continues from its last file"):
        jobs.resume("zorp")
    with pytest.raises(NotFound):
        jobs.resume("nobody")


def test_a_run_is_not_resumed_on_another_checkpoint(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, "zorp")
    jobs = make_jobs(tmp_path)
    run = jobs.runs.get("zorp")
    run.update(state="stopped", checkpoint={"name": "theirs.safetensors", "sha256": "0" * 64}, now=True)
    with pytest.raises(InputError, match=r"trained on theirs\.safetensors"):
        jobs.resume("zorp")


@pytest.mark.parametrize(
    ("known", "loaded", "said"),
    [
        ({"name": "m", "sha256": ""}, "sampled:a", "cannot be told"),  # an earlier version, with --no-hashing
        ({"name": "m", "sha256": "", "fingerprint": "sampled:a"}, "", "cannot be told"),
        ({"name": "m", "sha256": "0" * 64}, "sampled:a", "cannot be told"),
        ({"name": "m", "sha256": "", "fingerprint": "sampled:b"}, "sampled:a", "was trained on m"),
        ({"name": "m", "sha256": "0" * 64, "fingerprint": "sampled:b"}, "sampled:a", "was trained on m"),
        ({"name": "m", "sha256": "0" * 64, "fingerprint": "sampled:a"}, "sampled:a", ""),
    ],
)
def test_where_the_host_has_no_hash_a_checkpoint_is_known_by_its_weights_and_unknown_is_not_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, str], loaded: str, said: str
) -> None:
    run_to_end(tmp_path, "zorp")
    jobs = make_jobs(tmp_path)
    run = jobs.runs.get("zorp")
    run.update(state="stopped", checkpoint=known, now=True)
    real = jobs.host.check
    monkeypatch.setattr(jobs.host, "check", lambda config: replace(real(config), sha256="", fingerprint=loaded))
    if said:
        with pytest.raises(InputError, match=said):
            jobs.resume("zorp")
        assert run.state == "stopped"
        return
    jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    assert run.state == "done"


def test_a_run_whose_program_ended_says_so_and_looking_writes_nothing(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, "zorp")
    run.update(state="running", process=[os.getppid(), psutil.Process(os.getppid()).create_time()], now=True)
    before = (run.folder / "manifest.json").read_bytes()
    jobs = make_jobs(tmp_path)
    for found in (jobs.settled("zorp"), *jobs.list()):  # whatever lives under the number of its process now
        assert found.state == "stopped"
        assert "resume" in found.manifest["message"]
    assert (run.folder / "manifest.json").read_bytes() == before
    run = jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    assert run.state == "done"


def test_a_grid_whose_program_ended_says_so(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, "zorp")
    run.update(grid={"state": "running", "done": 1, "of": 4, "process": [1, 1.0]}, now=True)
    assert make_jobs(tmp_path).settled("zorp").manifest["grid"]["state"] == "stopped"
    run.update(
        grid={
            "state": "running",
            "done": 1,
            "of": 4,
            "process": [os.getppid(), psutil.Process(os.getppid()).create_time()],
        },
        now=True,
    )
    assert make_jobs(tmp_path).settled("zorp").manifest["grid"]["state"] == "running"


@pytest.fixture
def other_program(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a program that has a run's lock until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from lora_trainer.core.process import Lock;"
        "lock = Lock(Path(sys.argv[1]));"
        "print(lock.take(), flush=True); time.sleep(600)"
    )
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-c", code, str(folder / "lock")], stdout=subprocess.PIPE, text=True
        )
        started.append(program)
        assert program.stdout is not None
        assert program.stdout.readline() == "True\n"
        return program

    yield start
    for program in started:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("process", [None, [1, 1.0], []])
def test_a_run_of_another_living_program_is_left_alone(
    tmp_path: Path, other_program: Callable[[Path], subprocess.Popen[str]], process: object
) -> None:
    run = run_to_end(tmp_path, "zorp")
    run.update(state="running", process=process, now=True)
    program = other_program(run.folder)
    jobs = make_jobs(tmp_path)
    jobs.restore()
    assert jobs.settled("zorp").state == "running"
    with pytest.raises(InputError, match="another program"):
        jobs.stop("zorp")
    with pytest.raises(InputError, match="only a stopped one"):
        jobs.resume("zorp")
    program.kill()
    program.wait()
    assert jobs.settled("zorp").state == "stopped"


def test_of_two_programs_that_resume_a_run_at_once_one_does(
    tmp_path: Path, other_program: Callable[[Path], subprocess.Popen[str]]
) -> None:
    run = run_to_end(tmp_path, "zorp", training__steps=4)
    run.update(state="stopped", now=True)
    jobs = make_jobs(tmp_path)
    assert jobs.settled("zorp").state == "stopped"
    other_program(run.folder)  # between the other's look and its act
    with pytest.raises(InputError, match="worked on by another program"):
        jobs.resume("zorp")
    assert jobs.training.find(jobs.runs.get("zorp")) is None


def test_what_another_program_made_of_a_run_meanwhile_counts(tmp_path: Path) -> None:
    run_to_end(tmp_path, "zorp").update(state="running", now=True)
    jobs = make_jobs(tmp_path)
    assert jobs.settled("zorp").state == "stopped"
    make_jobs(tmp_path).runs.get("zorp").update(state="done", now=True)
    with pytest.raises(InputError, match="zorp is done"):
        jobs.resume("zorp")


def test_two_buttons_pressed_at_once_resume_a_run_once(tmp_path: Path) -> None:
    run_to_end(tmp_path, "zorp", training__steps=4).update(state="stopped", now=True)
    jobs = make_jobs(tmp_path)
    added: list[object] = []
    add = jobs.training.add
    jobs.training.add = lambda task: (added.append(task), add(task))  # type: ignore[method-assign,assignment]
    answers: list[str] = []
    together = threading.Barrier(6)

    def press() -> None:
        together.wait()
        try:
            answers.append(jobs.resume("zorp").name)
        except InputError:
            answers.append("refused")

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(added), answers.count("zorp"), answers.count("refused")) == (1, 1, 5)
    assert jobs.wait(jobs.runs.get("zorp"), LIMIT)


@pytest.mark.skipif(os.name == "nt", reason="the lock of another kind of system")
@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_the_file_system_has_no_locks_number_and_start_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def none(file: int, shared: bool) -> None:
        raise OSError(reason, "no locks")

    monkeypatch.setattr("lora_trainer.core.process._lock", none)
    run = run_to_end(tmp_path, "zorp")
    assert run.state == "done"
    others = [os.getppid(), psutil.Process(os.getppid()).create_time()]
    run.update(state="running", process=others, now=True)
    jobs = make_jobs(tmp_path)
    assert jobs.settled("zorp").state == "running"
    with pytest.raises(InputError, match="another program"):
        jobs.stop("zorp")
    for number in (1.0, others[1] - 3600):
        run.update(state="running", process=[others[0], number], now=True)
        assert make_jobs(tmp_path).settled("zorp").state == "stopped"
    run = jobs.resume("zorp")
    assert jobs.wait(run, LIMIT)
    assert run.state == "done"


def test_shutdown_pauses_the_run(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    run = submit(jobs, tmp_path, "zorp", training__steps=1000)
    while run.manifest["step"] < 2:
        assert run.state in ("queued", "running"), run.manifest["message"]
    jobs.shutdown()
    assert run.state == "paused"
    assert list(run.states.glob("*.safetensors"))


def test_a_grid_has_a_column_for_the_checkpoint_and_each_file(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__steps=4, save__every_steps=2, save__every_epochs=0)
    jobs = make_jobs(tmp_path)
    run = jobs.grids.draw("zorp", weights=[0.5, 1.0], prompts=["zorp", "red circle"])
    assert jobs.wait(run, LIMIT)
    assert run.manifest["grid"]["state"] == "done", run.manifest["grid"]
    with Image.open(run.manifest["grid"]["path"]) as sheet:
        assert sheet.width >= 3 * 64
        assert sheet.height >= 4 * 64
    cells = list((run.grids / "plain" / "cells").glob("*.png"))
    assert len(cells) == 2 * 2 * 2 + 2  # the checkpoint alone looks the same at every weight


@pytest.mark.parametrize(
    ("weights", "part"), [([3.0], "from -2 to 2"), ([0.001 * i for i in range(1500)], "200 are the most")]
)
def test_an_impossible_grid_is_refused(tmp_path: Path, weights: list[float], part: str) -> None:
    run_to_end(tmp_path, "zorp")
    with pytest.raises(InputError, match=part):
        make_jobs(tmp_path).grids.draw("zorp", weights=weights)


def test_a_run_stops_after_its_epoch(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    when(jobs, at_step(1), lambda: jobs.stop("zorp", StopRequest.AFTER_EPOCH))
    run = submit(jobs, tmp_path, "zorp", training__steps=1000, save__every_epochs=0)
    assert jobs.wait(run, LIMIT)
    assert run.state == "stopped"
    assert run.manifest["step"] % run.manifest["steps_per_epoch"] == 0
    assert [entry["step"] for entry in run.manifest["files"]] == [run.manifest["step"]]


def test_stopping_after_the_epoch_can_be_hurried(tmp_path: Path) -> None:
    control = Control()
    for wish, expected in [("epoch", "epoch"), ("pause", "pause"), ("discard", "pause"), ("epoch", "pause")]:
        control.ask(StopRequest(wish))
        assert control.request == expected


def test_a_file_that_is_written_already_is_not_written_under_another_name(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    when(jobs, at_step(1), lambda: jobs.stop("zorp", StopRequest.AFTER_EPOCH))
    run = submit(jobs, tmp_path, "zorp", training__steps=1000, save__every_epochs=1)
    assert jobs.wait(run, LIMIT)
    assert [entry["epoch"] for entry in run.manifest["files"]] == [*range(1, run.manifest["epoch"] + 1)]


def test_a_waiting_run_can_be_put_in_front(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path)
    submit(jobs, tmp_path, "first", training__steps=200)
    second, third = (submit(jobs, tmp_path, name) for name in ("second", "third"))
    jobs.move("third", 1)
    assert [task.run for task in jobs.training.waiting()] == [third, second]
    assert third.manifest["place"] < second.manifest["place"]  # so is the order after a restart
    jobs.move("third", 2)
    assert [task.run for task in jobs.training.waiting()] == [second, third]
    assert second.manifest["place"] < third.manifest["place"]
    jobs.stop("first")
    with pytest.raises(InputError, match="does not wait"):
        jobs.move("first", 1)
    assert jobs.wait(third, LIMIT)


def waiting(root: Path, names: Sequence[str], **changes: object) -> None:
    """Runs that waited in line when their program ended."""
    ended = make_jobs(root)
    for number, name in enumerate(names):
        config = TrainConfig.from_dict(document(root, name, **changes))
        checkpoint = {"sha256": ended.host.check(ModelRequest.of(config)).sha256}
        ended.runs.create(config, checkpoint=checkpoint, process=[1, 1.0]).update(created=float(number), now=True)


LOOKS: dict[str, Callable[[Jobs], object]] = {
    "nobody": lambda jobs: None,
    "list": lambda jobs: jobs.list(),
    "page": lambda jobs: [jobs.settled(name) for name in ("three", "one", "two")],
    "other": lambda jobs: make_jobs(jobs.host.folders.runs.parent).list(),
    "waiter": lambda jobs: jobs.wait(jobs.runs.get("two"), 0.1),
}


@pytest.mark.parametrize("look", LOOKS)
def test_waiting_runs_are_in_line_again_after_a_restart_whoever_looks_first(tmp_path: Path, look: str) -> None:
    names = ["one", "two", "three"]
    waiting(tmp_path, names, training__steps=1)
    order: list[str] = []
    jobs = make_jobs(tmp_path)
    jobs._on_change = lambda run: order.append(run.name)
    LOOKS[look](jobs)
    jobs.restore()
    until(lambda: all(jobs.runs.get(name).state == "done" for name in names))
    assert list(dict.fromkeys(order)) == names


def test_a_page_that_looks_all_the_while_drops_no_waiting_run(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    waiting(tmp_path, names, training__steps=1)
    jobs = make_jobs(tmp_path)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            assert all(run.state != "stopped" for run in jobs.list())

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            jobs.restore()
            until(lambda: all(jobs.runs.get(name).state == "done" for name in names))
        finally:
            over.set()
        looking.result(LIMIT)


def test_a_waiting_run_of_an_ended_program_can_be_stopped_or_resumed_at_once(tmp_path: Path) -> None:
    waiting(tmp_path, ["one", "two"])
    jobs = make_jobs(tmp_path)
    assert jobs.stop("one").state == "stopped"
    run = jobs.resume("two")
    jobs.restore()
    assert jobs.wait(run, LIMIT)
    assert (run.state, jobs.runs.get("one").state) == ("done", "stopped")


def test_two_servers_on_the_same_folder_share_the_waiting_runs(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    waiting(tmp_path, names, training__steps=2)
    servers = [make_jobs(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Jobs.restore, servers))
    until(lambda: all(make_jobs(tmp_path).runs.get(name).state == "done" for name in names))
    for name in names:
        entries = (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()
        assert [json.loads(entry)["step"] for entry in entries] == [1, 2]


def test_a_damaged_run_does_not_keep_others_from_going_on(tmp_path: Path) -> None:
    waiting(tmp_path, ["bad", "one"])
    bad = tmp_path / "runs" / "bad" / "manifest.json"
    bad.write_text(json.dumps({**json.loads(bad.read_text()), "created": "x", "place": ["x"]}))
    (tmp_path / "runs" / "bad" / "config.toml").write_text("[")
    jobs = make_jobs(tmp_path)
    jobs.restore()
    until(lambda: jobs.runs.get("one").state == "done")


def test_a_runs_grid_can_be_stopped_and_goes_on(tmp_path: Path) -> None:
    run = run_to_end(tmp_path, training__steps=2)
    jobs = make_jobs(tmp_path)
    with pytest.raises(InputError, match="No grid"):
        jobs.grids.stop("zorp")
    when(jobs, lambda run: run.manifest["grid"].get("done", 0) >= 2, lambda: jobs.grids.stop("zorp"))
    run = jobs.grids.draw("zorp", weights=[0.1 * i for i in range(1, 20)], prompts=["zorp", "red circle"])
    assert jobs.wait(run, LIMIT)
    assert run.manifest["grid"]["state"] == "stopped"
    kept = len(list((run.grids / "plain" / "cells").glob("*.png")))
    assert 2 <= kept < run.manifest["grid"]["of"]


@pytest.mark.parametrize("option", ["data__folder", "network__continue_from"])
def test_a_public_webui_reads_only_its_own_folders(tmp_path: Path, option: str) -> None:
    jobs = make_jobs(tmp_path / "webui")
    document(tmp_path)  # draws the pictures
    theirs, ours = tmp_path / "pictures", tmp_path / "webui" / "pictures"
    jobs.host.readable = [tmp_path / "webui"]
    changes = {"data__folder": str(ours)}
    document(tmp_path / "webui")
    for path in (str(theirs), str(ours / ".." / ".." / "pictures"), "/"):
        with pytest.raises(InputError, match="may not be read") as caught:
            submit(jobs, tmp_path / "webui", "zorp", **{**changes, option: path})
        assert caught.value.field == option.replace("__", ".")
    assert jobs.check(TrainConfig.from_dict(document(tmp_path / "webui", **changes))).items
    jobs.host.readable = None
    assert jobs.dataset(TrainConfig.from_dict(document(tmp_path)).data, decode=True).items


@pytest.mark.parametrize("changes", [{"epochs": 1, "warmup": 1000}, {"scheduler": "constant", "warmup": 2, "steps": 4}])
def test_a_warmup_that_cannot_be_done_is_refused_and_nothing_begun(tmp_path: Path, changes: dict[str, Any]) -> None:
    jobs = make_jobs(tmp_path)
    wanted = {"steps": 0, "scheduler": "cosine", **changes}
    values = document(tmp_path, **{f"training__{key}": value for key, value in wanted.items()})
    with pytest.raises(InputError, match="warm-up") as caught:
        jobs.submit(TrainConfig.from_dict(values))
    assert caught.value.field == "training.warmup"
    with pytest.raises(InputError, match="warm-up"):
        jobs.sweep(TrainConfig.from_dict(values), {"training.seed": [1, 2]})
    assert jobs.runs.names() == []


def test_the_case_of_a_warmup_that_is_too_long(tmp_path: Path) -> None:
    case = CASES / "warmup-too-long"
    changed = {"checkpoint": "", "data.folder": str(case / "pictures")}
    settings = TrainConfig.from_toml(case / "run.toml").with_values(changed)
    with pytest.raises(InputError, match="1000 steps of warm-up are more than the run's 2 steps"):
        make_jobs(tmp_path).submit(settings)
