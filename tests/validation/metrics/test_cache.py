from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lora_trainer.core.errors import RunError
from lora_trainer.validation.metrics import cache
from lora_trainer.validation.metrics.cache import NumberCache, cache_key
from tests.helpers import temporary_files


def test_what_is_put_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "made" / "numbers.json"
    kept = NumberCache(path)
    assert kept.get("a") is None
    kept.put("a", [0.1, math.nan])
    kept.put("b", ())
    kept.write()
    again = NumberCache(path)
    assert again.get("b") == []
    first, second = again.get("a") or []
    assert first == 0.1
    assert math.isnan(second)
    assert not temporary_files(tmp_path)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = NumberCache(None)
    kept.put("a", [1.0])
    kept.write()
    assert kept.get("a") == [1.0]
    assert list(tmp_path.iterdir()) == []


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    NumberCache(path).write()
    assert not path.exists()


def test_it_is_written_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "numbers.json"
    kept = NumberCache(path)
    kept.put("a", [1.0])
    assert not path.exists()
    monkeypatch.setattr(cache, "_WRITE_EVERY", 0.0)
    kept.put("b", [1.0])
    assert json.loads(path.read_text(encoding="utf-8"))["numbers"].keys() == {"a", "b"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'{"version": 1, "numbers": []}', b'{"version": 0, "numbers": {"a": [1]}}'),
        *(b'{"version": 1}', b'{"version": 1, "numbers": {"a": ["x"]}}', b'{"version": 1, "numbers": {"a": 1}}'),
        *(b"\xff\xfe", b"[" * 100_000),
    ],
    ids=[
        *("empty", "cut off", "a list", "null", "no table", "another version"),
        *("nothing in it", "a text", "no list", "not UTF-8", "deep"),
    ],
)
def test_what_is_damaged_is_forgotten_and_written_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "numbers.json"
    path.write_bytes(content)
    kept = NumberCache(path)
    assert kept.get("a") is None
    kept.put("a", [2.0])
    kept.write()
    assert NumberCache(path).get("a") == [2.0]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    kept = NumberCache(tmp_path / "file" / "numbers.json")
    kept.put("a", [1.0])
    with pytest.raises(RunError, match="could not be written"):
        kept.write()


def test_keys_tell_apart_what_differs() -> None:
    keys = {cache_key(*parts) for parts in [(), ("a",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("a", 1.5)]}
    assert len(keys) == 7
    assert cache_key("a", 1) == cache_key("a", 1)
