"""Damaged documents: every key of a run's manifest, grid, block results, log and state removed, retyped and nested.

Nobody may fall over one of them: not REST, not the page, not ``lora-trainer runs``; and the run beside it is shown.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from lora_trainer.api.routes import PREFIX, mount
from lora_trainer.cli.main import main
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.files import write_json
from lora_trainer.jobs.block_work import blocks_folder
from lora_trainer.network.lora_file import save_lora
from lora_trainer.runs.run import Run
from lora_trainer.ui.panels.blocks import BlocksPanel
from lora_trainer.ui.tab import Tab
from tools.soak.damage import BROKEN, damages
from tools.soak.small import document, draw_pictures, make_jobs
from tools.soak.states import States

GOOD, BAD = "good", "bad"
ROUTES = ["", "/log", "/grid", "/blocks"]
POSTS = ["stop", "pause", "resume", "load-checkpoint", "grid/stop", "blocks/stop", "front"]


# ------------------------------------------------------------------ what is damaged
class World:
    """Two finished runs of a host that has loaded nothing, with all of their documents.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.jobs = make_jobs(root)
        self.jobs._train = lambda run: None  # type: ignore[method-assign]  # nothing is trained here
        self._root = root
        pictures = draw_pictures(root / "pictures", count=2)
        for name in (GOOD, BAD):
            self._make(self.jobs.runs.create(TrainConfig.from_dict(document(name, pictures, 4)), checkpoint={}))
        self.run = self.jobs.runs.get(BAD)
        blocks = blocks_folder(self.run) / BAD
        self.files = {
            "manifest": self.run.folder / "manifest.json",
            "grid": self.run.grids / "plain" / "grid.json",
            "votes": self.run.grids / "plain" / "votes.json",
            "analysis": blocks / "analysis.json",
            "tuning": blocks / "tuning.json",
            "log": self.run.folder / "log.jsonl",
            "config": self.run.folder / "config.toml",
        }
        self._kept = {kind: path.read_bytes() for kind, path in self.files.items()}
        app = FastAPI()
        mount(app, self.jobs)
        self._client = TestClient(app, base_url=f"http://test{PREFIX}", raise_server_exceptions=False)
        self._client.__enter__()  # one event loop for all requests; one for each would stay in memory
        self._tab = Tab(self.jobs)

    def close(self) -> None:
        """End the client's event loop."""
        self._client.__exit__()

    def document(self, kind: str) -> Any:
        """A document as it was."""
        if kind == "log":
            return [json.loads(line) for line in self._kept[kind].splitlines()]
        return json.loads(self._kept[kind])

    def write(self, kind: str, content: Any) -> None:
        """Put a document (plain values, or bytes) in the place of the one that was there; as another program would."""
        if kind == "log" and isinstance(content, list):
            content = "\n".join(map(json.dumps, content)).encode()
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.files[kind].unlink(missing_ok=True)
        self.files[kind].write_bytes(text)
        self.jobs.runs._open.pop(BAD, None)

    def restore(self, kind: str) -> None:
        """As it was."""
        self.write(kind, self._kept[kind])

    # -------------------------------------------------------------- looking at it
    def look(self, *, acts: bool = True) -> Counter[str]:
        """Ask everybody who reads documents; raises AssertionError where one falls over. Returns REST's answers."""
        answers = self._rest(acts)
        self._page()
        self._command_line()
        return answers

    def _rest(self, acts: bool) -> Counter[str]:
        answers: Counter[str] = Counter()
        asked = [("GET", f"runs/{BAD}{route}") for route in ROUTES]
        asked += [("POST", f"runs/{BAD}/{verb}") for verb in POSTS] if acts else []
        for method, path in asked:
            answer = self._client.request(method, path)
            assert answer.status_code in (200, 404, 422), f"{method} {path}: {answer.status_code} {answer.text[:500]}"
            answers[str(answer.status_code)] += 1
        listed = self._client.get("runs")
        assert listed.status_code == 200, listed.text[:500]
        states = {entry["name"]: entry["state"] for entry in listed.json()}
        assert states[GOOD] == "done", states
        assert BAD in states, "the damaged run is not in the list"
        answers[states[BAD]] += 1
        return answers

    def _page(self) -> None:
        tab = self._tab
        panel: BlocksPanel = tab.block_weights
        answers = [*tab.watch.show(BAD, {})[:-1], *panel.watch.show(BAD, BAD, "", {})[:-1]]
        sent = json.dumps(answers, default=str, ensure_ascii=False).encode()  # as gradio sends it
        assert len(sent) < 1_000_000, "a page of megabytes"
        tab.training._reuse(BAD)
        tab.training._resume(BAD)

    def _command_line(self) -> None:
        for arguments in (["runs"], ["runs", "--json"], ["runs", BAD], ["runs", BAD, "--json"]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([*arguments, "--root", str(self._root)])
            said = out.getvalue() + err.getvalue()
            assert "Traceback" not in said, said
            assert code in ((0,) if BAD not in arguments else (0, 2)), said
            assert BAD in arguments or (GOOD in said and BAD in said), said
            if "--json" in arguments and code == 0:
                json.loads(out.getvalue(), parse_constant=_no_constant)

    # -------------------------------------------------------------- making it
    def _make(self, run: Run) -> None:
        loras = self.jobs.host.folders.loras / run.name
        key = "lora_unet_mid_block_attentions_0_proj_in"
        tensors = {
            f"{key}.lora_down.weight": torch.ones(2, 8, 1, 1), f"{key}.lora_up.weight": torch.ones(8, 2, 1, 1),
            f"{key}.alpha": torch.tensor(2.0),
        }  # fmt: skip
        files = []
        for epoch, name in ((1, f"{run.name}-000001"), (2, run.name)):
            path = loras / f"{name}.safetensors"
            digest = save_lora(path, tensors, {}, "fp32")
            metrics = {"loss": 0.1, "validation": 0.2}
            files.append({"path": str(path), "epoch": epoch, "step": 2 * epoch, "sha256": digest, "metrics": metrics})
        sample = run.samples / "00000004-00.png"
        _picture(sample)
        for step in range(1, 5):
            run.log(step=step, epoch=1, loss=0.1 * step, lr={"unet": 1e-4}, seconds=step / 10)
        run.log(step=4, epoch=1, validation=0.2, base=False)
        self._make_grid(run, files)
        self._make_blocks(run, files[-1])
        run.update(
            state="done", step=4, steps=4, epoch=2, epochs=2, files=files, phase="", waiting=False, waits="",
            checkpoint={"name": "a.safetensors", "sha256": "ab", "fingerprint": "cd", "family": "SD1"},
            samples=[{"path": str(sample), "step": 4, "epoch": 1, "prompt": "zorp"}],
            validation={"base": 0.3, "last": 0.2, "best": 0.2, "best_epoch": 2, "best_step": 4},
            vae={"key": "k", "name": ""}, process=[1, 1.0], place=1.0, started=1.0, finished=2.0, seconds=1.0,
            loss=0.1, loss_average=0.1, lr={"unet": 1e-4}, steps_per_second=2.0, seconds_left=0.0, steps_per_epoch=2,
            dataset={"pictures": 2, "images_per_epoch": 2, "skipped": [], "concepts": {}, "fingerprint": "ef"},
            error={"template": "Memory is full ({error}).", "field": "", "values": {"error": "x", "rank": 3}},
            grid={"state": "done", "done": 4, "of": 4, "message": "", "phase": "", "seconds_left": None},
            blocks={"state": "stopped", "kind": "tuning", "file": run.name, "done": 1, "of": 2, "message": "Over."},
            message="Memory is full (x).", now=True,
        )  # fmt: skip

    @staticmethod
    def _make_grid(run: Run, files: list[dict[str, Any]]) -> None:
        folder = run.grids / "plain"
        columns = [{"label": "no LoRA", "file": None, "name": "", "epoch": 0, "step": 0}]
        columns += [
            {"label": f"epoch {f['epoch']}", "file": f["path"], "name": Path(f["path"]).stem, "epoch": f["epoch"],
             "step": f["step"]} for f in files
        ]  # fmt: skip
        cells, groups = [], []
        for column in range(3):
            weight = 0.8 if column else 0.0
            key = f"{column:016d}"
            picture = folder / "cells" / f"{key}.png"
            _picture(picture)
            cells.append(
                {"column": column, "weight": weight, "prompt": 0, "seed": 0, "key": key, "picture": str(picture),
                 "numbers": {"effect": 0.1}}
            )  # fmt: skip
            groups.append({"column": column, "weight": weight, "numbers": {"loss": 0.1}, "losses": [0.1]})
        sentence = {"template": "Recommended: {name} (epoch {epoch}) at weight {weight:g}.", "values": {"weight": 1.0}}
        verdict = {"state": "good", "column": 1, "weight": 0.8, "turn": None, "sentences": [sentence]}
        grid = {
            "version": 2, "run": run.name, "trigger": "zorp", "columns": columns, "weights": [0.8],
            "prompts": [{"text": "zorp", "trigger": True}], "seeds": [1], "size": [64, 64], "negative": "",
            "sampler": "Euler", "steps": 2, "cfg": 7.0, "cells": cells, "groups": groups, "verdict": verdict,
            "problems": [sentence], "sheets": [str(folder / "grid.png")], "csv": str(folder / "grid.csv"),
            "measured": {"held_out": True, "pictures": 1, "of": 1, "timesteps": 2, "problems": []},
        }  # fmt: skip
        write_json(folder / "grid.json", grid)
        write_json(folder / "votes.json", {cells[1]["key"]: 1})

    @staticmethod
    def _make_blocks(run: Run, file: dict[str, Any]) -> None:
        folder = blocks_folder(run) / Path(file["path"]).stem
        picture = folder / "a.png"
        _picture(picture)
        effect = {"rms": 0.1, "rms_sd": 0.01, "share": 0.2, "share_sd": 0.02}
        both = {"only": effect, "without": effect}
        shown = {"only": str(picture), "without": str(picture), "difference": str(picture)}
        note = {"template": "Most of what the LoRA does comes from {blocks}.", "values": {"blocks": "MID"}}
        block = {"block": "MID", "effect": 0.1, **both, "leak": both, "pictures": [shown]}
        request = {"prompt": "zorp", "seed": 1, "trigger": True, "none": str(picture), "full": str(picture)}
        analysis = {
            "version": 1, "sha256": file["sha256"], "requests": [request], "gain": 4, "all": effect,
            "all_leak": effect, "blocks": [block], "notes": [note], "sheets": [], "csv": "",
        }  # fmt: skip
        write_json(folder / "analysis.json", analysis)
        found = {"before": 0.2, "after": 0.1, "improvement": 0.1, "error": 0.01, "relative": 0.5, "state": "helps"}
        named = {**found, "name": "1", "prompt": "<lora:x:1>", "loss": 0.1, "tried": {"1": 0.1}}
        tuning = {
            "version": 1, "sha256": file["sha256"], "weight": 1.0, "pictures": {"kind": "training", "count": 2},
            "losses": {"base": 0.3, "before": 0.2, "fitted": 0.1}, "weights": {"MID": 0.5}, "lbw": "0.5",
            "prompt": "<lora:x:1>", "tuned": found, "single": named, "preset": named, "recommended": "tuned",
            "sentences": [note, note],
        }  # fmt: skip
        write_json(folder / "tuning.json", tuning)


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "green").save(path)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


# ------------------------------------------------------------------ the long test
class Documents:
    """All damages of all documents, in a random order."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._world = World(folder / "runs")
        self._states = States(folder / "states")
        self._rng = random.Random(seed)

    def go(self, count: int) -> dict[str, Any]:
        """Look at ``count`` damaged documents, at all of them when it is 0."""
        world = self._world
        world.look()
        answers: Counter[str] = Counter()
        every = [
            (kind, name, made)
            for kind in ("manifest", "grid", "votes", "analysis", "tuning", "log")
            for name, made in damages(world.document(kind))
        ]
        every += [("state", name, made) for name, made in damages(self._states.document())]
        every += [(kind, f"bytes {n}", each) for kind in (*world.files, "state") for n, each in enumerate(BROKEN)]
        self._rng.shuffle(every)
        chosen = every[: count or None]
        kinds: Counter[str] = Counter()
        for number, (kind, name, made) in enumerate(chosen):
            if number % 100 == 0:
                print(f"\r{number} of {len(chosen)}", end="", file=sys.stderr, flush=True)
            try:
                answers += self._look(kind, made)
            except Exception as error:
                raise AssertionError(f"{kind} {name}") from error
            kinds[kind] += 1
        world.close()
        self._states.close()
        return {"documents": len(chosen), "of": len(every), "kinds": dict(kinds), "answers": dict(answers)}

    def _look(self, kind: str, made: Any) -> Counter[str]:
        if kind == "state":
            return Counter({f"state {self._states.look(made)}": 1})
        world = self._world
        world.write(kind, made)
        answers = world.look(acts=self._rng.random() < 0.2)
        for each in world.files:
            world.restore(each)
        return answers
