"""Documents of a run that are damaged; ``python -m tools.soak documents`` damages every key in every way."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.cli.main import main
from tools.soak.damage import BROKEN, damages, places
from tools.soak.documents import BAD, GOOD, World

DOCUMENTS = ("manifest", "grid", "votes", "analysis", "tuning", "log")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("damaged"))
    yield world
    world.close()


@pytest.fixture
def world(made: World) -> Iterator[World]:
    yield made
    for kind in made.files:
        made.restore(kind)


def test_whole_documents_are_shown_by_all(world: World) -> None:
    answers = world.look()
    assert answers["done"] == 1
    assert answers["damaged"] == 0
    report = world._client.get(f"runs/{BAD}/blocks").json()
    assert report["problems"] == []
    assert report["analysis"]["blocks"][0]["block"] == "MID"
    assert report["tuning"]["recommended"] == "tuned"
    assert world._client.get(f"runs/{BAD}/grid").json()["verdict"]["column"] == 1


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_nobody_falls_over_a_damaged_document(world: World, kind: str) -> None:
    every = list(damages(world.document(kind)))
    chosen = random.Random(kind).sample(every, min(30, len(every)))
    for name, document in chosen:
        world.write(kind, document)
        try:
            world.look()
        except AssertionError as error:
            raise AssertionError(f"{kind} {name}") from error


@pytest.mark.parametrize("kind", [*DOCUMENTS, "config"])
def test_nobody_falls_over_a_file_that_is_no_document(world: World, kind: str) -> None:
    for content in BROKEN:
        world.write(kind, content)
        answers = world.look()
        assert answers["damaged" if kind == "manifest" else "done"] == 1


def test_a_manifest_without_a_key_that_each_has_is_told_with_its_place(world: World) -> None:
    whole = world.document("manifest")
    for key in ("version", "state", "files", "samples", "validation", "step", "message"):
        world.write("manifest", {k: v for k, v in whole.items() if k != key})
        shown = world._client.get(f"runs/{BAD}").json()
        assert shown["state"] == "damaged"
        assert f"(at {key})" in shown["message"]
        assert f"The run {BAD} cannot be read" in shown["message"]


def test_keys_of_another_version_are_kept(world: World) -> None:
    run = world.jobs.runs.get(BAD)
    world.write("manifest", {**world.document("manifest"), "later": {"a": [1, "x"]}})
    run = world.jobs.runs.get(BAD)
    run.update(step=2, now=True)
    assert json.loads(world.files["manifest"].read_text(encoding="utf-8"))["later"] == {"a": [1, "x"]}


def test_a_manifest_of_a_later_version_says_so_and_is_not_written(world: World) -> None:
    for content in ({**world.document("manifest"), "version": 2}, {"version": 3, "other": []}):
        world.write("manifest", content)
        before = world.files["manifest"].read_bytes()
        shown = world._client.get(f"runs/{BAD}").json()
        assert (shown["state"], "newer version" in shown["message"]) == ("damaged", True)
        for verb in ("resume", "stop", "grid", "blocks/analyze", "load-checkpoint"):
            assert world._client.post(f"runs/{BAD}/{verb}").status_code == 422
        assert world.files["manifest"].read_bytes() == before


def test_a_damaged_manifest_is_never_written_over(world: World) -> None:
    whole = world.document("manifest")
    for path in places(whole):
        damaged = json.loads(json.dumps(whole))
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = ["damage"]
        world.write("manifest", damaged)
        before = world.files["manifest"].read_bytes()
        if world.jobs.runs.shown(BAD).state != "damaged":
            continue  # a place that nobody reads
        for verb in ("resume", "stop", "pause", "grid", "grid/stop"):
            world._client.post(f"runs/{BAD}/{verb}")
        assert world.files["manifest"].read_bytes() == before


@pytest.mark.parametrize(
    ("template", "values", "shown"),
    [
        ("{x:9999999999}", {"x": 1}, "{x:9999999999}"),
        ("{x:>999999999}", {"x": "a"}, "{x:>999999999}"),
        ("{x.__class__}", {"x": "a"}, "{x.__class__}"),
        ("{x[0]}", {"x": "abc"}, "{x[0]}"),
        ("{x!r}", {"x": "abc"}, "{x!r}"),
        ("{x:{y}}", {"x": 1, "y": 99999999}, "{x:99999999}"),
        ("{0} {} {", {"x": 1}, "{0} {} {"),
        ("{y}", {"x": 1}, "{y}"),
    ],
)
def test_a_sentence_of_a_manifest_is_no_format_string(
    world: World, capsys: pytest.CaptureFixture[str], template: str, values: dict[str, Any], shown: str
) -> None:
    error = {"template": template, "field": "", "values": values}
    world.write("manifest", {**world.document("manifest"), "state": "failed", "error": error})
    world.look()
    from lora_trainer.ui.html.run import status_card
    from tests.ui.markup import Page

    card = Page(status_card(world.jobs.runs.get(BAD).manifest, 0, lambda text: text))
    assert shown in card.text
    grid = world.document("grid")
    grid["problems"] = grid["verdict"]["sentences"] = [{"template": template, "values": values}]
    world.write("grid", grid)
    world.look()


def test_the_command_line_lists_the_damaged_run_among_the_others(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write("manifest", b"{")
    assert main(["runs", "--root", str(world._root)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " done " in lines[GOOD]
    assert " damaged " in lines[BAD]
    assert "manifest.json is damaged (at 1:2)" in lines[BAD]
    assert main(["runs", BAD, "--root", str(world._root)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_the_page_shows_the_damaged_run_and_the_next_one_can_be_chosen(world: World) -> None:
    world.write("manifest", b"null")
    tab = world._tab
    shown = dict(zip(tab.watch.widgets, tab.watch.show(BAD, {}), strict=False))
    assert "Damaged" in shown["status"]
    assert "manifest.json is damaged" in shown["status"]
    assert set(shown["run"]["choices"]) == {GOOD, BAD}
    shown = dict(zip(tab.watch.widgets, tab.watch.show(GOOD, {}), strict=False))
    assert GOOD in shown["status"]


def test_what_is_damaged_of_grid_and_blocks_is_told_there(world: World) -> None:
    for kind, path in (("grid", "grid"), ("analysis", "blocks"), ("tuning", "blocks")):
        document = world.document(kind)
        document.pop("sentences" if kind == "tuning" else "cells" if kind == "grid" else "requests")
        world.write(kind, document)
        answer = world._client.get(f"runs/{BAD}/{path}")
        told = answer.json()["problems"] if kind != "grid" else [answer.json()["detail"][0]["msg"]]
        assert answer.status_code == (422 if kind == "grid" else 200)
        assert f"{world.files[kind].name} is damaged" in told[0]
        panel = world._tab.block_weights
        parts = panel.parts(BAD, BAD, "") if kind != "grid" else world._tab.validate.parts(world.jobs.runs.get(BAD))
        _, show = parts["grid_verdict" if kind == "grid" else kind]
        assert f"{world.files[kind].name} is damaged" in show()
        world.restore(kind)


def test_runs_come_in_pages(world: World, tmp_path: Path) -> None:
    first = world._client.get("runs", params={"limit": 1})
    second = world._client.get("runs", params={"limit": 1, "offset": 1})
    assert {first.json()[0]["name"], second.json()[0]["name"]} == {GOOD, BAD}
    assert first.headers["X-Total-Count"] == "2"
    assert world._client.get("runs", params={"offset": 2}).json() == []
    assert [m["name"] for m in world._client.get("runs").json()] == world.jobs.runs.names()
    short = world._client.get("runs", params={"short": True}).json()
    assert all({"name", "state", "step", "checkpoint"} <= entry.keys() for entry in short)
    assert not any({"files", "samples", "dataset"} & entry.keys() for entry in short)
    for wrong in ({"limit": 0}, {"limit": 10**6}, {"offset": -1}, {"limit": "x"}):
        assert world._client.get("runs", params=wrong).status_code == 422


def test_the_log_comes_in_pages(world: World) -> None:
    found: list[dict[str, Any]] = []
    while page := world._client.get(
        f"runs/{BAD}/log", params={"after": found[-1]["step"] if found else 0, "limit": 2}
    ).json():
        found += page
    assert found == world._client.get(f"runs/{BAD}/log").json()
    assert [(e["step"], "validation" in e) for e in found] == [
        (1, False), (2, False), (3, False), (4, False), (4, True)
    ]  # fmt: skip
