"""A real WebUI, started on a scratch folder."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers import LIMIT
from tests.helpers import ROOT as PROJECT

ASSETS = PROJECT / "lora_trainer" / "demo" / "assets"
ROOT = Path(os.environ.get("WEBUI_ROOT", Path.home() / "stable-diffusion-webui"))
PYTHON = Path(os.environ.get("WEBUI_PYTHON", ROOT / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"))
ARGUMENTS = [
    *("--skip-prepare-environment", "--skip-torch-cuda-test", "--use-cpu", "all", "--no-half"),
    *("--skip-python-version-check", "--no-download-sd-model"),
]

STARTED = "Startup time"
"""What the WebUI prints when its page and API are there, after each start and each "Reload UI"."""


def missing() -> str:
    """Why there is no WebUI to test in, or an empty text."""
    if not (ROOT / "launch.py").is_file():
        return f"NO WEBUI: {ROOT} is no stable-diffusion-webui; name one in WEBUI_ROOT"
    if not PYTHON.is_file():
        return f"NO WEBUI: {PYTHON} does not exist; name its interpreter in WEBUI_PYTHON"
    found = subprocess.run([PYTHON, "-c", "import diffusers"], capture_output=True, check=False)
    if found.returncode:
        return f"NO WEBUI: diffusers is not in {PYTHON}; run install.py with it"
    return ""


class WebUI:
    """A WebUI process, and its REST interface."""

    def __init__(
        self,
        data: Path,
        *arguments: str,
        settings: dict[str, Any] | None = None,
        auth: str | None = None,
        login: str | None = None,
        api: bool = True,
    ) -> None:
        self.data = data
        self.auth = auth or login
        self.api = api
        arguments = (*arguments, *(("--api",) if api else ()), *(("--api-auth", auth) if auth else ()))
        if login:
            arguments = (*arguments, "--gradio-auth", login)
        self._prepare(settings or {})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [PYTHON, "launch.py", *ARGUMENTS, "--data-dir", data, "--port", str(self.port), *arguments]
        self._start()

    def _start(self) -> None:
        self._log = (self.data / "webui.log").open("wb")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def _prepare(self, settings: dict[str, Any]) -> None:
        models = self.data / "models" / "Stable-diffusion"
        models.mkdir(parents=True)
        chosen = {"sd_model_checkpoint": "small.safetensors", "show_progress_every_n_steps": -1, **settings}
        (self.data / "config.json").write_text(json.dumps(chosen))
        for name in ("small", "other"):  # the second has the same shape and other weights
            add_checkpoint(models, name)
        self._add_extensions(self.data / "extensions")

    def _add_extensions(self, folder: Path) -> None:
        """Ours, and the one that runs code for the tests."""
        copy_extension(PROJECT, folder)
        shutil.copytree(PROJECT / "tests" / "webui" / "real" / "probe", folder / "probe")

    def wait(self, seconds: float = LIMIT) -> None:
        """Wait until the WebUI answers and its checkpoint is loaded."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            try:
                # A request that comes before the WebUI has added its API makes it fail ("Cannot add middleware").
                if STARTED in self.log() and self.get("/lora-train/v1/health")["checkpoint"]:
                    return
            except (OSError, KeyError):
                pass
            time.sleep(0.3)
        raise RuntimeError(f"the WebUI did not start:\n{self.log()[-3000:]}")

    def until_reloaded(self, starts: int = 1) -> None:
        """Wait until the page that "Reload UI" takes away is there again; it had been started so often.

        Nothing is requested before, see :meth:`wait`.
        """
        until = time.monotonic() + LIMIT
        while self.log().count(STARTED) <= starts:
            assert time.monotonic() < until, self.log()[-2000:]
            time.sleep(0.1)
        self.wait()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def log(self) -> str:
        """What the process printed."""
        return (self.data / "webui.log").read_text(errors="replace")

    def until_gone(self, seconds: float = LIMIT) -> None:
        """Wait until the process has ended by itself."""
        self._process.wait(seconds)

    def kill_and_start(self) -> None:
        """Kill the process, as a power cut would, and start it again on the same folder."""
        self.close()
        self._start()
        self.wait()

    def __enter__(self) -> WebUI:
        """Wait until it has started."""
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def request(self, method: str, path: str, body: Any = None, auth: str | None = None) -> tuple[int, Any]:
        """Status and answer; ``auth`` is ``user:password`` instead of the right ones, empty for none."""
        headers = {"content-type": "application/json", **({} if self.api else {"origin": self.url})}
        if auth := self.auth if auth is None else auth:
            headers["authorization"] = "Basic " + base64.b64encode(auth.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                return error.code, json.loads(text)
            except ValueError:
                return error.code, text

    def get(self, path: str) -> Any:
        return self.request("GET", path)[1]

    def post(self, path: str, body: Any = None) -> Any:
        return self.request("POST", path, body or {})[1]

    def probe(self, code: str) -> Any:
        """Run code in the WebUI's process; returns its ``result``."""
        answer = self.post("/probe", {"code": code})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def picture(self, prompt: str, **values: Any) -> Image.Image:
        """Draw with txt2img."""
        body = {
            "prompt": prompt,
            "seed": 1,
            "steps": 6,
            "width": 128,
            "height": 128,
            "sampler_name": "Euler a",
            **values,
        }
        answer = self.post("/sdapi/v1/txt2img", body)
        return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")

    def train(self, **document: Any) -> str:
        """Start a run; returns its name."""
        status, answer = self.request("POST", "/lora-train/v1/runs", document)
        assert status == 200, answer
        return answer["name"]

    def finished(self, name: str) -> dict[str, Any]:
        """Wait for a run's end; returns its manifest."""
        return self.in_state(name, "paused", "stopped", "failed", "done")

    def in_state(self, name: str, *states: str, seconds: float = LIMIT) -> dict[str, Any]:
        """Wait until a run is in one of these states; returns its manifest."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            manifest = self.get(f"/lora-train/v1/runs/{name}")
            if manifest["state"] in states:
                return manifest
            time.sleep(0.1)
        raise RuntimeError(f"{name} is not {states}: {manifest}\n{self.log()[-2000:]}")

    def drawn(self, name: str, seconds: float = LIMIT) -> dict[str, Any]:
        """Wait until a run's grid is drawn; returns the manifest's entry."""
        until = time.monotonic() + seconds
        while (grid := self.get(f"/lora-train/v1/runs/{name}")["grid"])["state"] in ("queued", "running"):
            assert time.monotonic() < until, grid
            time.sleep(0.1)
        return grid

    def until(self, name: str, step: int, seconds: float = 60) -> None:
        """Wait until a run has done some steps."""
        until = time.monotonic() + seconds
        while self.get(f"/lora-train/v1/runs/{name}")["step"] < step:
            assert time.monotonic() < until, self.log()[-2000:]
            time.sleep(0.02)


def copy_extension(tree: Path, extensions: Path) -> None:
    """Put a working tree's extension below a WebUI's ``extensions``."""
    ignored = shutil.ignore_patterns(".*", "tests", "demo-output", "assets", "__pycache__", "benchmarks")
    shutil.copytree(tree, extensions / "lora-train", ignore=ignored)


def add_checkpoint(folder: Path, name: str) -> None:
    """Put the small checkpoint with its yaml into ``folder``; all but ``small`` get other weights."""
    from safetensors.torch import load_file, save_file

    source = ASSETS / "small-sd1.safetensors"
    if name == "small":
        shutil.copy(source, folder / "small.safetensors")
    else:
        weights = load_file(source)
        weights = {k: v * 1.01 if k.endswith("to_q.weight") else v for k, v in weights.items()}
        save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})
    text = (ASSETS / "small-sd1.yaml").read_text(encoding="utf-8")
    clip = (ASSETS / "clip").as_posix()
    (folder / f"{name}.yaml").write_text(text.replace("version: clip", f"version: {clip}"), encoding="utf-8")


def main() -> None:
    """``python -m tests.webui.real.webui FOLDER``: a WebUI to look at, on a scratch folder."""
    webui = WebUI(Path(sys.argv[1]), *sys.argv[2:])
    webui.wait()
    print(webui.url)
    webui._process.wait()


if __name__ == "__main__":
    main()
