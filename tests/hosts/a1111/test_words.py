"""What the WebUI takes a trigger's words for: see :mod:`tests.fake_webui`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.fake_webui import FakeWebUI


@pytest.fixture
def words(webui: FakeWebUI) -> Any:
    from lora_trainer.hosts.a1111.host import A1111Host

    return A1111Host().words


@pytest.mark.parametrize(
    ("trigger", "found"),
    [
        ("zorp", []),
        ("a (zorp)", [("syntax", "(")]),
        ("a AND b", [("syntax", "AND")]),
        ("<lora:x:1>", [("syntax", "<lora:x:1>")]),
        ("band", []),
        ("zorp # my word", [("syntax", "#")]),
    ],
)
def test_syntax_of_prompts_is_told(words: Any, trigger: str, found: list[tuple[str, str]]) -> None:
    assert words(trigger) == found


def test_comments_may_be_off(webui: FakeWebUI, words: Any) -> None:
    webui.shared.opts.data["enable_prompt_comments"] = False
    assert words("zorp # my word") == []


def test_a_style_of_that_name_is_told(webui: FakeWebUI, words: Any) -> None:
    webui.shared.prompt_styles.styles = {"Zorp": ("Zorp", "a {prompt}", ""), "other": ("other", "b", "")}
    assert words("zorp, red") == [("style", "Zorp")]
    assert words("zorpy") == []


def test_wildcards_are_told_where_such_a_file_is(webui: FakeWebUI, words: Any) -> None:
    assert words("__zorp__") == []
    for folder, name in (("wildcards", "zorp"), ("ext/wildcards", "deep/er"), ("own", "mine")):
        path = webui.data / folder / f"{name}.txt"
        path.parent.mkdir(parents=True)
        path.touch()
    webui.extensions.extensions.append(webui.extensions.Extension("w", str(webui.data / "ext")))
    webui.shared.opts.data["wildcard_dir"] = str(webui.data / "own")
    assert words("__zorp__ __deep/er__ __mine__ __none__") == [
        *(("wildcard", "__zorp__"), ("wildcard", "__deep/er__"), ("wildcard", "__mine__"))
    ]


def test_embeddings_are_told_wherever_their_tokens_stand(webui: FakeWebUI, words: Any) -> None:
    database = webui.sd_hijack.model_hijack.embedding_db
    database.register_embedding(SimpleNamespace(name="red circle"), webui.model)
    assert words("a red circle, red circle") == [("embedding", "red circle")]
    assert words("red square") == []


def test_embeddings_that_are_not_read_yet_are_told_too(webui: FakeWebUI, words: Any) -> None:
    folder = webui.data / "embeddings"
    (folder / "deep").mkdir(parents=True)
    for name in ("blue.pt", "deep/green.safetensors", "red.txt", "square.bin"):
        (folder / name).touch()
    webui.sd_hijack.model_hijack.embedding_db.skipped_embeddings["square"] = object()
    assert sorted(words("blue green red square")) == [("embedding", "blue"), ("embedding", "green")]
    for known in webui.sd_hijack.model_hijack.embedding_db.embedding_dirs.values():
        known.update()
    assert words("blue") == []


def test_without_a_checkpoint_no_embedding_is_told(webui: FakeWebUI, words: Any) -> None:
    webui.sd_models.model_data.sd_model = None
    assert words("red") == []
