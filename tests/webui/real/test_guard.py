"""A WebUI whose page has a login and that has no API, asked by programs and by pages of other sites."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.webui.real.webui import WebUI

HEALTH, PAUSE = "/lora-train/v1/health", "/lora-train/v1/runs/some/pause"
LOGIN = "ann:secret"


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with WebUI(tmp_path_factory.mktemp("closed"), login=LOGIN, api=False) as running:
        yield running


def status(webui: WebUI, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of a request with these headers only."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(webui.url + path, body, named), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_login_of_the_page_opens_our_rest_too(closed: WebUI) -> None:
    assert closed.request("GET", "/sdapi/v1/options")[0] == 404  # the host serves no API
    assert closed.get(HEALTH)["status"] == "ok"
    assert closed.request("GET", HEALTH, auth="")[0] == 401
    assert closed.request("GET", HEALTH, auth="ann:wrong")[0] == 401
    assert closed.request("POST", PAUSE, auth="")[0] == 401
    assert closed.request("POST", PAUSE)[0] == 404


def test_the_cookie_of_the_page_is_enough(closed: WebUI) -> None:
    form = b"username=ann&password=secret"
    request = urllib.request.Request(closed.url + "/login", form)
    with urllib.request.urlopen(request, timeout=60) as answer:
        cookies = [each.split(";")[0] for each in answer.headers.get_all("set-cookie")]
    assert status(closed, HEALTH, Origin=closed.url, Cookie="; ".join(cookies))[0] == 200
    assert status(closed, HEALTH, Origin=closed.url, Cookie="access-token=made-up")[0] == 401


def test_programs_are_told_of_api(closed: WebUI) -> None:
    code, said = status(closed, HEALTH)
    assert (code, "--api" in said) == (403, True)


def test_a_foreign_page_presses_nothing(closed: WebUI, webui: WebUI) -> None:
    for host in (closed, webui):
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
            code, said = status(host, PAUSE, b"{}", Content_Type="text/plain", **headers)
            assert (code, "Another web page" in said) == (403, True)
        code, said = status(host, PAUSE, b"{}", Content_Type="text/plain", Origin=host.url)
        assert code == (401 if host is closed else 415), said
