"""Random REST bodies, paths and TOML documents: no 500, no traceback, nothing written outside the allowed folders."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import string
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.testclient import TestClient

from lora_trainer.api.routes import PREFIX, mount
from lora_trainer.config.schema import parse_toml
from lora_trainer.config.train import TrainConfig, options
from lora_trainer.core.errors import InputError
from tools.soak.small import document, draw_pictures, make_jobs

NASTY: list[Any] = [
    None, True, False, 0, -1, 1e308, -1e308, 2**80, 0.1, "", " ", ".", "..", "/", "\\", "../../x", "C:\\x", "con",
    "nul.txt", "a" * 300, "名字" * 80,
    "\ud800", "\x00", "a\nb", "<script>alert(1)</script>", "%2e%2e%2fx", "~", "~root",
    "$HOME", "{name}", "{0}", "%s", [], [[]], {}, {"a": {"b": 1}}, ["x"] * 50, "NaN", "1e400",
    "/etc/passwd", "/proc/self",
]  # fmt: skip
ROUTES = [
    ("POST", "/runs"), ("POST", "/runs"), ("POST", "/runs"), ("POST", "/dataset/check"), ("POST", "/runs/{}/stop"),
    ("POST", "/runs/{}/pause"), ("POST", "/runs/{}/resume"), ("POST", "/runs/{}/grid"), ("POST", "/runs/{}/grid/stop"),
    ("POST", "/runs/{}/front"), ("POST", "/runs/{}/load-checkpoint"), ("GET", "/runs/{}"), ("GET", "/runs/{}/log"),
    ("GET", "/runs"), ("GET", "/health"), ("GET", "/schema"),
]  # fmt: skip
EXPECTED = (200, 404, 405, 422)


class Fuzz:
    """Sends the requests to an app of its own, whose runs are taken in but never trained.

    Args:
        folder: everything may be written in ``folder/allowed`` only.
        seed: of all random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._rng = random.Random(seed)
        self._folder = folder
        root = folder / "allowed"
        self._valid = document("fuzz", draw_pictures(root / "pictures", count=3), 10)
        self._jobs = make_jobs(root)
        self._jobs._confined = True
        self._jobs._train = lambda run: None  # type: ignore[method-assign]
        app = FastAPI()
        mount(app, self._jobs)
        self._client = TestClient(app, raise_server_exceptions=False)
        self._outside = self._files_outside()

    def go(self, count: int) -> dict[str, Any]:
        """Send ``count`` requests and read ``count // 10`` TOML documents; returns how they were answered."""
        answers: Counter[int] = Counter()
        for number in range(count):
            answers[self._request()] += 1
            if number % 10 == 0:
                self._read_toml()
            if number % 500 == 0:
                print(f"\r{number} of {count}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        assert self._files_outside() == self._outside, "something was written outside of the allowed folder"
        taken = len(self._jobs.runs.names())
        for name in self._jobs.runs.names():
            assert (self._jobs.runs.root / name).parent == self._jobs.runs.root
        return {
            "requests": count,
            "answers": dict(sorted(answers.items())),
            "toml": -(-count // 10),
            "runs_taken": taken,
        }

    def _request(self) -> int:
        method, path = self._rng.choice(ROUTES)
        name = str(self._rng.choice([*NASTY, "fuzz"]))
        encoded = quote(name.encode("utf-8", "replace"), safe=self._rng.choice(["", "/", "."]))
        body = self._body()
        content = json.dumps(body).encode("utf-8", "replace") if self._rng.random() < 0.9 else self._bytes()
        answer = self._client.request(
            method, PREFIX + path.replace("{}", encoded or "x"), content=None if method == "GET" else content
        )
        where = f"{method} {path} {name[:40]!r} {content[:300]!r}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code in EXPECTED, where
        assert "Traceback" not in answer.text, where
        if answer.status_code == 422:
            for problem in answer.json()["detail"]:
                assert problem["msg"], where
        return answer.status_code

    def _body(self) -> Any:
        """A valid run with some values replaced, dropped or added; now and then anything at all."""
        if self._rng.random() < 0.1:
            return self._value()
        body = copy.deepcopy(self._valid)
        body["name"] = f"fuzz{self._rng.randrange(10**9)}"
        for _ in range(self._rng.choice([0, 1, 1, 2, 5])):
            section, _, key = self._rng.choice(options()).path.rpartition(".")
            target = body.setdefault(section, {}) if section else body
            if isinstance(target, dict):
                target[key if self._rng.random() < 0.9 else self._text()] = self._value()
            if self._rng.random() < 0.05:
                body[section or "data"] = self._value()
        return body

    def _value(self) -> Any:
        kind = self._rng.random()
        if kind < 0.7:
            return copy.deepcopy(self._rng.choice(NASTY))
        if kind < 0.8:
            return self._text()
        return self._rng.choice([self._rng.uniform(-1e4, 1e4), self._rng.randrange(-100, 10**6)])

    def _text(self) -> str:
        letters = string.printable + "äß漢字🙂\u202e\u0000"
        return "".join(self._rng.choices(letters, k=self._rng.randrange(30)))

    def _bytes(self) -> bytes:
        return self._rng.randbytes(self._rng.randrange(200))

    def _read_toml(self) -> None:
        """Lines of a valid document, cut, doubled and mixed with garbage."""
        lines = TrainConfig.from_dict({"name": "x"}).to_toml().splitlines()
        for _ in range(self._rng.randrange(6)):
            place = self._rng.randrange(len(lines))
            lines[place] = self._rng.choice(
                [self._text(), lines[place][: self._rng.randrange(40)], f"[{self._text()}]"]
            )
        with contextlib.suppress(InputError, ValueError):  # read_toml makes a sentence of the parser's ValueError
            TrainConfig.from_dict(parse_toml("\n".join(lines)))

    def _files_outside(self) -> set[Path]:
        beside = {p for p in self._folder.iterdir() if p.name != "allowed"}
        above = set(self._folder.parent.iterdir()) if self._folder.parent != Path("/tmp") else set()
        allowed = {"pictures", "runs", "models", "cache", "presets"}
        return beside | above | {p for p in (self._folder / "allowed").iterdir() if p.name not in allowed}
