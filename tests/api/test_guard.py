"""Who may ask: logins, programs, and pages of other sites, on every route that there is."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from lora_trainer.api import routes
from lora_trainer.api.guard import Door
from tests.runs_helpers import make_jobs

ROUTES = sorted(
    (method, re.sub(r"{\w+}", "some", route.path))
    for app in [FastAPI()]
    if routes.mount(app, make_jobs(Path("/nonexistent"))) is None
    for route in app.routes
    if isinstance(route, APIRoute)
    for method in route.methods
)
WRITING = [path for method, path in ROUTES if method == "POST"]
HERE = {"Origin": "http://test", "Sec-Fetch-Site": "same-origin"}
FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://test.evil.example"},
    {"Origin": "http://test:8000"},
    {"Origin": "http://[broken"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "something new"},
    {"Referer": "http://evil.example/page"},
]


def client_of(tmp_path: Path, door: Door | None = None, app: FastAPI | None = None) -> TestClient:
    app = app or FastAPI()
    routes.mount(app, make_jobs(tmp_path), door or Door())
    return TestClient(app, base_url="http://test")


@pytest.fixture
def open_door(tmp_path: Path) -> TestClient:
    """As with ``--api`` and no password."""
    return client_of(tmp_path)


def test_there_are_routes_to_try() -> None:
    assert len(WRITING) > 15
    assert len(ROUTES) - len(WRITING) > 5


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_no_route_answers_a_foreign_page(open_door: TestClient, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        answer = open_door.request(method, path, headers={"Content-Type": "application/json", **headers})
        assert (answer.status_code, "Another web page" in answer.text) == (403, True), (method, path)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data", "json", ""],
)
def test_every_route_that_changes_something_reads_json_only(open_door: TestClient, kind: str) -> None:
    for path in WRITING:
        for body in (b"", b"{}"):
            answer = open_door.post(path, content=body, headers={**HERE, "Content-Type": kind})
            assert (answer.status_code, "application/json" in answer.text) == (415, True), path
        assert open_door.post(path, content=b"{}").status_code == 415, path
        assert open_door.post(path, content=iter([b"{}"])).status_code == 415, path


@pytest.mark.parametrize("headers", [{}, HERE, {"Origin": "http://test"}, {"Sec-Fetch-Site": "none"}], ids=str)
def test_programs_and_the_own_page_are_answered(open_door: TestClient, headers: dict[str, str]) -> None:
    for method, path in ROUTES:
        assert open_door.request(method, path, headers=headers).status_code not in (401, 403, 415), (method, path)
    answer = open_door.post(WRITING[0], content=b"{", headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert "not valid JSON" in answer.text


def test_a_proxy_may_rename_the_server(open_door: TestClient) -> None:
    path = f"{routes.PREFIX}/health"
    renamed = {"Origin": "https://drawing.example", "Host": "127.0.0.1:7860"}
    assert open_door.get(path, headers=renamed).status_code == 403
    assert open_door.get(path, headers={**renamed, "X-Forwarded-Host": "drawing.example"}).status_code == 200
    assert open_door.get(path, headers={**renamed, "Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_pages_that_the_owner_let_in(tmp_path: Path) -> None:
    client = client_of(tmp_path, Door(origins=("https://mine.example",), origins_pattern=r"https://\w+\.ours\.example"))
    for origin, status in (
        ("https://mine.example", 200),
        ("https://a.ours.example", 200),
        ("https://a.ours.example.evil", 403),
        ("https://other.example", 403),
    ):
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert client.get(f"{routes.PREFIX}/health", headers=headers).status_code == status
    everybody = client_of(tmp_path, Door(origins=("*",)))
    assert everybody.get(f"{routes.PREFIX}/health", headers={"Origin": "https://x.example"}).status_code == 200


def test_without_api_only_the_own_page_is_answered(tmp_path: Path) -> None:
    closed = client_of(tmp_path, Door(programs=False))
    for method, path in ROUTES:
        for headers in ({}, {"Sec-Fetch-Site": "none"}):
            answer = closed.request(method, path, headers=headers)
            assert (answer.status_code, "--api" in answer.text) == (403, True), (method, path)
        assert closed.request(method, path, headers=HERE).status_code not in (401, 403), (method, path)
    old_browser = {"Referer": "http://test/?__theme=dark"}
    assert closed.get(f"{routes.PREFIX}/health", headers=old_browser).status_code == 200


def test_the_password_of_programs(tmp_path: Path) -> None:
    client = client_of(tmp_path, Door(auth="ann:secret, bob:x:y"))
    health = f"{routes.PREFIX}/health"
    for method, path in ROUTES:
        assert client.request(method, path).status_code == 401, (method, path)
    for wrong in (("ann", "x"), ("eve", "secret"), ("", ""), ("ann", ""), ("ann", "sécret")):
        assert client.get(health, auth=wrong).status_code == 401
    assert client.get(health, headers={"Authorization": "Basic %%%"}).status_code == 401
    for right in (("ann", "secret"), ("bob", "x:y")):
        assert client.get(health, auth=right).status_code == 200


@pytest.fixture(params=["pairs", "function"])
def with_login(request: pytest.FixtureRequest, tmp_path: Path) -> TestClient:
    """A page of gradio's with a login, as with ``--gradio-auth`` and without ``--api-auth``."""
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.Markdown("page")
    function = request.param == "function"
    demo.auth = (lambda user, password: (user, password) == ("ann", "secret")) if function else [("ann", "secret")]
    demo.auth_message = None
    return client_of(tmp_path, app=gr.routes.App.create_app(demo))


def test_the_login_of_the_page_is_asked_for(with_login: TestClient) -> None:
    for method, path in ROUTES:
        assert with_login.request(method, path, headers=HERE).status_code == 401, (method, path)
    health = f"{routes.PREFIX}/health"
    assert with_login.get(health, auth=("ann", "wrong")).status_code == 401
    assert with_login.get(health, auth=("eve", "secret")).status_code == 401
    assert with_login.get(health, headers={"Cookie": "access-token=made-up"}).status_code == 401
    assert with_login.get(health, auth=("ann", "secret")).status_code == 200
    assert with_login.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
    token = next(iter(with_login.app.tokens))  # type: ignore[attr-defined]
    with_login.cookies.clear()
    assert with_login.get(health, headers={"Cookie": f"access-token={token}"}).status_code == 200
    assert with_login.get(health).status_code == 401
