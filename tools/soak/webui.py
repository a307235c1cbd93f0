"""Long tests in the real WebUI: pictures drawn beside a run, and many runs in one process."""

from __future__ import annotations

import base64
import hashlib
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.webui.real.webui import WebUI
from tools.soak.small import document, draw_pictures

MEMORY = """
import ctypes, gc, psutil, torch
gc.collect()
try:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
except OSError:
    pass
tensors = {}
for thing in gc.get_objects():
    try:
        if isinstance(thing, torch.Tensor):
            tensors[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    except Exception:
        continue
result = [psutil.Process().memory_info().rss, sum(tensors.values()), len(tensors)]
"""


def start(folder: Path) -> WebUI:
    """A WebUI on a scratch folder, with an embedding and a hypernetwork in it."""
    webui = WebUI(folder / "webui")
    embeddings = webui.data / "embeddings"
    embeddings.mkdir(exist_ok=True)
    vector = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    save_file({"emb_params": vector}, embeddings / "soakword.safetensors")
    hypernetworks = webui.data / "models" / "hypernetworks"
    hypernetworks.mkdir(parents=True, exist_ok=True)
    torch.save({64: (_layer(1), _layer(2)), "name": "soaknet", "step": 1}, hypernetworks / "soaknet.pt")
    webui.wait()
    return webui


def _layer(seed: int) -> dict[str, torch.Tensor]:
    """The weights of one layer of a hypernetwork of structure 1, 2, 1 for the small checkpoint's text states."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (128, 64), "0.bias": (128,), "1.weight": (64, 128), "1.bias": (64,)}
    return {f"linear.{name}": 0.2 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()}


class Beside:
    """Draws pictures of all kinds beside a run and compares all of it with each alone."""

    def __init__(self, folder: Path) -> None:
        self._webui = start(folder)
        self._pictures = draw_pictures(folder / "pictures")
        self._kinds: dict[str, tuple[str, dict[str, Any]]] = {}

    def go(self, count: int) -> dict[str, Any]:
        """Draw ``count`` pictures beside a run; returns the figures or raises :class:`AssertionError`."""
        try:
            return self._go(count)
        finally:
            self._webui.close()

    def _go(self, count: int) -> dict[str, Any]:
        webui = self._webui
        for name in ("first", "second"):
            webui.finished(webui.train(**document(name, self._pictures, 10, seed=len(name))))
        self._make_kinds()
        alone = {kind: self._draw(kind) for kind in self._kinds}
        assert len({digest for digest, _ in alone.values()}) == len(alone), "two kinds give the same picture"
        own = {kind: [self._draw(kind)[1] for _ in range(5)] for kind in self._kinds}
        name = webui.train(**self._long("beside"))
        webui.until(name, 5)
        waits = []
        for number in range(count):
            kind = list(self._kinds)[number % len(self._kinds)]
            digest, seconds = self._draw(kind)
            assert digest == alone[kind][0], f"picture {number} ({kind}) differs from the same one drawn alone"
            waits.append(seconds - statistics.median(own[kind]))
            print(f"\r{number + 1} pictures", end="", file=sys.stderr, flush=True)
        manifest = webui.get(f"/lora-train/v1/runs/{name}")
        assert manifest["state"] == "running", manifest["message"]
        webui.post(f"/lora-train/v1/runs/{name}/stop")
        reached = webui.finished(name)["step"]
        files = self._files(name)
        reference = webui.train(**self._long("alone"))
        webui.until(reference, reached + 10, seconds=1200)
        pace = webui.get(f"/lora-train/v1/runs/{reference}")["steps_per_second"]
        webui.post(f"/lora-train/v1/runs/{reference}/stop", {"save": False})
        webui.finished(reference)
        expected = self._files(reference)
        common = sorted(set(files) & set(expected))
        assert common, "no file to compare"
        for step in common:
            assert files[step] == expected[step], f"the LoRA of step {step} differs from that of a run alone"
        print(file=sys.stderr)
        return {
            "pictures": count, "kinds": list(self._kinds), "pictures_that_differ": 0,
            "own_seconds": {kind: round(statistics.median(times), 3) for kind, times in own.items()},
            "wait_seconds_median": round(statistics.median(waits), 3), "wait_seconds_most": round(max(waits), 3),
            "step_seconds": round(1 / pace, 4), "slice_seconds": 0.2,
            "steps_learned_beside": reached, "loras_compared": len(common), "loras_that_differ": 0,
        }  # fmt: skip

    def _long(self, name: str) -> dict[str, Any]:
        values = document(name, self._pictures, 100_000)
        values["samples"] = {"prompts": [], "every_epochs": 0}
        values["validation"] = {"share": 0}
        values["save"] = {"every_epochs": 0, "every_steps": 20, "state_minutes": 0}
        return values

    def _make_kinds(self) -> None:
        first = base64.b64encode(self._png("red circle")).decode()
        size = {"width": 64, "height": 64}
        hires = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6, "hr_upscaler": "Latent", **size}
        self._kinds = {
            "plain": ("txt2img", {"prompt": "red circle, blue background"}),
            "lora": ("txt2img", {"prompt": "zorp <lora:first:0.8>"}),
            "two loras": ("txt2img", {"prompt": "zorp <lora:first:0.5> <lora:second:0.7>"}),
            "hires fix": ("txt2img", {"prompt": "zorp <lora:second:1>", **hires}),
            "img2img": ("img2img", {"prompt": "blue square", "init_images": [first], "denoising_strength": 0.7}),
            "embedding": ("txt2img", {"prompt": "soakword, red circle"}),
            "hypernetwork": ("txt2img", {"prompt": "red circle <hypernet:soaknet:1>"}),
        }

    def _draw(self, kind: str) -> tuple[str, float]:
        """The picture's digest and the seconds until it was there."""
        route, values = self._kinds[kind]
        began = time.perf_counter()
        content = self._png(route=route, **values)
        seconds = time.perf_counter() - began
        with Image.open(io.BytesIO(content)) as picture:
            return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest(), seconds

    def _png(self, prompt: str, route: str = "txt2img", **values: Any) -> bytes:
        body = {
            "prompt": prompt,
            "seed": 1,
            "steps": 6,
            "width": 128,
            "height": 128,
            "sampler_name": "Euler a",
            **values,
        }
        status, answer = self._webui.request("POST", f"/sdapi/v1/{route}", body)
        assert status == 200, answer
        return base64.b64decode(answer["images"][0])

    def _files(self, name: str) -> dict[int, str]:
        entries = self._webui.get(f"/lora-train/v1/runs/{name}")["files"]
        return {entry["step"]: _digest(Path(entry["path"])) for entry in entries}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(load_file(path).items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def many_runs(folder: Path, count: int) -> dict[str, Any]:
    """``count`` runs in one WebUI; memory after each."""
    webui = start(folder)
    try:
        pictures = draw_pictures(folder / "pictures")
        before = webui.probe(MEMORY)
        found = []
        for number in range(count):
            manifest = webui.finished(webui.train(**document(f"run{number}", pictures, 20)))
            assert manifest["state"] == "done", manifest["message"]
            found.append(webui.probe(MEMORY))
            print(f"\r{number + 1} runs, {found[-1][0] / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        second, last = found[1], found[-1]
        return {
            "runs": count,
            "process_mb": [round(rss / 1e6, 1) for rss, _, _ in [before, *found]],
            "tensors_mb": [round(size / 1e6, 2) for _, size, _ in [before, *found]],
            "tensors": [number for _, _, number in [before, *found]],
            "process_last_to_second": round(last[0] / second[0], 4),
            "tensors_last_to_second": round(last[1] / second[1], 4),
        }
    finally:
        webui.close()
