"""REST on an app of its own; the same routes are tried in the real WebUI by tests/webui/real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.api import routes
from lora_trainer.jobs.service import Jobs
from lora_trainer.network.lora_file import save_lora
from tests.helpers import LIMIT
from tests.network.made import some_lora
from tests.runs_helpers import document, make_jobs, run_to_end


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return make_jobs(tmp_path, confined=True)


@pytest.fixture
def client(jobs: Jobs) -> Iterator[TestClient]:
    app = FastAPI()
    routes.mount(app, jobs)
    with TestClient(app, base_url=f"http://test{routes.PREFIX}") as made:
        yield made


def test_a_run_through_rest(client: TestClient, jobs: Jobs, tmp_path: Path) -> None:
    answer = client.post("runs", json=document(tmp_path))
    assert (answer.status_code, answer.json()) == (200, {"name": "zorp", "state": "queued"})
    jobs.wait(jobs.runs.get("zorp"), LIMIT)
    manifest = client.get("runs/zorp").json()
    assert (manifest["state"], manifest["step"], manifest["steps"], manifest["epoch"]) == ("done", 3, 3, 1)
    assert {"path", "epoch", "step", "sha256"} <= manifest["files"][0].keys()
    assert [m["name"] for m in client.get("runs").json()] == ["zorp"]
    assert [e["step"] for e in client.get("runs/zorp/log", params={"after": 1}).json()] == [2, 3]


def test_pause_resume_stop(client: TestClient, jobs: Jobs, tmp_path: Path) -> None:
    client.post("runs", json=document(tmp_path, training__steps=100_000))
    run = jobs.runs.get("zorp")
    for verb, state in (("pause", "paused"), ("resume", None), ("stop", "stopped")):
        seen = run.manifest["step"]
        while state and run.manifest["step"] == seen:
            assert run.state in ("queued", "running"), run.manifest["message"]
        assert client.post(f"runs/zorp/{verb}").status_code == 200
        if state:
            jobs.wait(run, LIMIT)
            assert client.get("runs/zorp").json()["state"] == state


def test_grid(client: TestClient, jobs: Jobs, tmp_path: Path) -> None:
    run_to_end(tmp_path)
    answer = client.post("runs/zorp/grid", json={"weights": [1], "prompts": ["zorp"]})
    assert answer.json()["grid"]["state"] == "queued"
    jobs.wait(jobs.runs.get("zorp"), LIMIT)
    assert client.get("runs/zorp").json()["grid"]["state"] == "done"


def test_dataset_check(client: TestClient, tmp_path: Path) -> None:
    folder = document(tmp_path)["data"]["folder"]
    for body in ({"folder": folder, "resolution": 64}, {"data": {"folder": folder, "resolution": 64}}):
        report = client.post("dataset/check", json=body).json()
        assert report["pictures"] == len(report["items"]) == 5


@pytest.fixture
def loras(jobs: Jobs) -> Path:
    """The LoRA folder with ``a`` and ``sub/b``."""
    root = jobs.host.folders.loras
    save_lora(root / "a.safetensors", some_lora(4, 2.0), {"ss_seed": "1"}, "fp16")
    save_lora(root / "sub" / "b.safetensors", some_lora(3, 3.0, seed=50), {}, "fp16")
    return root


def test_loras_are_listed_and_described(client: TestClient, loras: Path) -> None:
    listed = client.get("loras").json()
    assert [entry["name"] for entry in listed] == ["a", "sub/b"]
    assert listed[0]["bytes"] == (loras / "a.safetensors").stat().st_size
    found = client.get("loras/info", params={"name": "b"}).json()
    assert (found["modules"], found["ranks"]) == (4, [3])
    for name, status in (("nobody", 404), ("../a", 404), ("", 422), (str(loras / "a.safetensors"), 404)):
        answer = client.get("loras/info", params={"name": name})
        assert (answer.status_code, answer.json()["detail"][0]["field"]) == (status, "name")


@pytest.mark.parametrize(
    ("verb", "body", "fact"),
    [
        ("bake", {"file": "a", "lbw": "ALL0.5"}, {"changed": 4}),
        ("merge", {"files": ["a: 0.7", "b: 0.5"]}, {"ranks": [7]}),
        ("resize", {"file": "a", "rank": 2}, {"ranks": [2]}),
    ],
)
def test_file_tools_through_rest(
    client: TestClient, jobs: Jobs, loras: Path, verb: str, body: dict[str, Any], fact: dict[str, Any]
) -> None:
    begun = client.post(f"loras/{verb}", json={**body, "output": "made"}).json()
    assert (begun["kind"], begun["title"], begun["id"]) == (verb, "made", f"{verb}-1")
    jobs.tools.wait(jobs.tools.get(begun["id"]), LIMIT)
    over = client.get(f"loras/work/{begun['id']}").json()
    assert (over["state"], over["message"]) == ("done", "")
    assert over["result"]["path"] == str(loras / "made.safetensors")
    assert {key: over["result"][key] for key in fact} == fact
    assert client.post(f"loras/work/{begun['id']}/stop").status_code == 422
    again = client.post(f"loras/{verb}", json={**body, "output": "made"})
    assert (again.status_code, again.json()["detail"][0]["field"]) == (422, "output")


def test_health_and_schema(client: TestClient) -> None:
    health = client.get("health").json()
    assert (health["status"], health["host"], health["checkpoint"]["family"]) == ("ok", "standalone", "SD1")
    schema = client.get("schema").json()
    assert schema["properties"]["network"]["properties"]["rank"]["minimum"] == 1


def test_openapi_describes_the_routes(client: TestClient) -> None:
    paths = client.app.openapi()["paths"]  # type: ignore[attr-defined]
    body = paths[f"{routes.PREFIX}/runs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "training" in body["properties"]
    for path in ("/schema", "/runs/{name}", "/runs/{name}/log", "/runs/{name}/stop", "/dataset/check", "/health"):
        assert routes.PREFIX + path in paths


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "runs", {"name": "x", "data": {"folder": "/nowhere"}}, 422, "data.folder"),
        ("POST", "runs", {"name": "../x"}, 422, "name"),
        ("POST", "runs", {"name": "x", "network": {"rank": "high"}}, 422, "network.rank"),
        ("POST", "runs", {"name": "x", "netwrok": {}}, 422, "netwrok"),
        ("POST", "runs", [], 422, "body"),
        ("POST", "dataset/check", {"folder": 3}, 422, "data.folder"),
        ("GET", "runs/nobody", None, 404, "name"),
        ("GET", "runs/..%2F..%2Fetc", None, 404, None),
        ("POST", "runs/nobody/stop", None, 404, "name"),
        ("POST", "runs/nobody/grid", {"weights": "many"}, 422, "weights"),
        ("POST", "runs/nobody/grid", {"name": "zorp"}, 422, "name"),
        ("POST", "runs/nobody/stop", {"save": "no"}, 422, "save"),
        ("POST", "loras/bake", {"file": "nobody"}, 404, "file"),
        ("POST", "loras/merge", {"files": [1]}, 422, "files"),
        ("POST", "loras/resize", {"file": "a", "rank": "two"}, 422, "rank"),
        ("GET", "loras/work/bake-9", None, 404, "id"),
        ("POST", "loras/work/bake-9/stop", None, 404, "id"),
    ],
)
def test_bad_input_names_the_field(
    client: TestClient, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    if field:
        assert answer.json()["detail"][0]["field"] == field
        assert len(answer.json()["detail"][0]["msg"]) > 10


def test_bodies_that_are_no_json_or_too_large(client: TestClient) -> None:
    assert client.post("runs", content=b"{", headers=JSON).status_code == 422
    assert client.post("runs", content=b"[" * 100_000, headers=JSON).status_code == 422
    assert client.post("runs", content=b" " * 1_000_001, headers=JSON).status_code == 422


JSON = {"Content-Type": "application/json"}
TOOLS = (("POST", "loras/bake"), ("POST", "loras/merge"), ("POST", "loras/resize"))
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_sections = st.sampled_from(["data", "network", "training", "save", "samples", "validation", "name", "checkpoint"])


@given(st.dictionaries(_sections, _values, max_size=5), st.text(max_size=30))
def test_no_body_and_no_name_makes_an_internal_error(
    tmp_path_factory: pytest.TempPathFactory, body: dict[str, Any], name: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz"
    app = FastAPI()
    routes.mount(app, make_jobs(root))
    client = TestClient(app, base_url=f"http://test{routes.PREFIX}", raise_server_exceptions=False)
    import json
    from urllib.parse import quote

    for verb, path in (
        ("POST", "runs"),
        ("POST", "dataset/check"),
        ("POST", f"runs/{quote(name, safe='')}/grid"),
        *TOOLS,
    ):
        assert client.request(verb, path, content=json.dumps(body), headers=JSON).status_code in (404, 405, 422)
    assert not root.exists()


def test_numbers_that_are_none_are_null_for_every_program(client: TestClient, jobs: Jobs, loras: Path) -> None:
    save_lora(loras / "odd.safetensors", some_lora(2, 1.0), {"ss_datasets": '[{"share": NaN, "big": 1e999}]'}, "fp16")
    answer = client.get("loras/info", params={"name": "odd"})
    assert answer.status_code == 200
    assert "NaN" not in answer.text
    assert "Infinity" not in answer.text
    refused = client.post("runs", content=b'{"name": "x", "training": {"unet_lr": NaN}}', headers=JSON)
    assert (refused.status_code, refused.json()["detail"][0]["field"]) == (422, "training.unet_lr")


NETWORK = [
    r"\\evil\share\x",
    "//evil/share",
    r" '\\evil\share' ",
    r"\\?\UNC\evil\share",
    "file://evil/x",
    "NUL",
    r"C:\a\con",
]


@pytest.mark.parametrize("text", NETWORK)
def test_no_field_reaches_another_computer(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, jobs: Jobs, text: str
) -> None:
    """Refused before any file call: on Windows the mere question sends the person's password hash away."""
    jobs.list()
    asked: list[str] = []

    def watched(call: Any) -> Any:
        def ask(path: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(str(path))
            return call(path, *args, **kwargs)

        return ask

    for name in ("stat", "lstat", "open", "listdir", "scandir", "readlink"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("runs", {"name": "x", "data": {"folder": text}}, "data.folder"),
        ("runs", {"name": "x", "network": {"continue_from": text}}, "network.continue_from"),
        ("runs", {"name": "x", "checkpoint": text}, "checkpoint"),
        ("runs", {"name": "x", "save": {"folder": text}}, "save.folder"),
        ("dataset/check", {"folder": text}, "data.folder"),
        ("preflight", {"data": {"folder": text}}, "data.folder"),
        ("loras/bake", {"file": text}, "file"),
        ("loras/bake", {"file": "a", "output": text}, "output"),
        ("loras/merge", {"files": [f"{text}: 0.5", "a: 0.5"]}, "files"),
        ("loras/resize", {"file": text, "rank": 2}, "file"),
    ]
    for path, body, field in bodies:
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["detail"][0]["field"]) == (422, field), (path, answer.text)
    assert client.get("loras/info", params={"name": text}).status_code == 422
    assert [path for path in asked if "evil" in path or "nul" in path.lower() or path.endswith("con")] == []


def test_a_misspelt_key_is_refused_by_every_route(client: TestClient, jobs: Jobs, tmp_path: Path) -> None:
    client.post("runs", json=document(tmp_path))
    jobs.wait(jobs.runs.get("zorp"), LIMIT)
    posts = [route.path for route in client.app.routes if "POST" in getattr(route, "methods", ())]  # type: ignore[attr-defined]
    assert len(posts) >= 19
    for path in posts:
        asked = path.replace("{name}", "zorp").replace("{work}", "none")
        answer = client.post(f"http://test{asked}", json={"sav": False})
        assert (answer.status_code, "sav" in answer.json()["detail"][0]["msg"]) == (422, True), (path, answer.text)
    beside = {"data": {"folder": str(tmp_path)}, "dat": 1}
    assert client.post("dataset/check", json=beside).status_code == 422
    answer = client.post("runs/zorp/stop", json={"sav": False})
    assert answer.json()["detail"][0]["msg"] == "sav: there is no such field; did you mean save?"
    assert client.get("runs/zorp").json()["state"] == "done"
