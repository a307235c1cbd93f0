from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_trainer.core.tensor_file import read_checked, write_checked

TENSORS = {
    "none": torch.zeros(0, 3),
    "number": torch.tensor(2.5),
    "half": torch.arange(6).reshape(2, 3).half(),
    "bf16": torch.arange(4).bfloat16(),
    "count": torch.tensor([1, 2**40]),
    "truth": torch.tensor([True, False]),
    "turned": torch.arange(12.0).reshape(3, 4).t(),
    "last": torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
}


def test_what_was_written_comes_back_plain(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.safetensors"
    write_checked(path, TENSORS, {"text": "“two words”"})
    tensors, texts = read_checked(path)
    assert texts == {"text": "“two words”"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, TENSORS[name])


def test_what_was_read_is_apart_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checked(path, {"a": torch.ones(100_000)}, {})
    tensors, _ = read_checked(path)
    path.write_bytes(bytes(path.stat().st_size))  # as another program might, in place
    assert torch.equal(tensors["a"], torch.ones(100_000))


@pytest.mark.parametrize("part", ["tensor", "name", "type", "shape", "text", "checksum"])
def test_a_change_of_any_part_is_noticed(tmp_path: Path, part: str) -> None:
    path = tmp_path / "a.safetensors"
    write_checked(path, {"a": torch.arange(4.0)}, {"text": "x"})
    with safe_open(path, "pt") as file:
        texts, tensor, name = dict(file.metadata()), file.get_tensor("a"), "a"
    if part == "tensor":
        tensor[1] += 1e-7
    elif part == "name":
        name = "b"
    elif part == "type":
        tensor = tensor.view(torch.int32)
    elif part == "shape":
        tensor = tensor.reshape(2, 2)
    elif part == "text":
        texts["text"] = "y"
    else:
        del texts["sha256"]
    save_file({name: tensor}, path, texts)
    with pytest.raises(ValueError, match="does not match its checksum"):
        read_checked(path)


def test_files_of_earlier_versions_are_read_where_that_is_wished(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2)}, path, {"text": "x"})
    tensors, texts = read_checked(path, unchecked=frozenset({"text"}))
    assert (texts, tensors["a"].tolist()) == ({"text": "x"}, [1, 1])
    for unchecked in (frozenset[str](), frozenset({"other"}), frozenset({"text", "other"})):
        with pytest.raises(ValueError, match="checksum"):
            read_checked(path, unchecked=unchecked)
