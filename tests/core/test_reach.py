"""Paths that are refused by their letters, and those that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_trainer.core.reach import asks_another_computer, is_device, reach_problem

NETWORK = [
    r"\\host\share",
    r"\\host@80\share\x.safetensors",
    "//host/share",
    r"\/host/share",
    r"/\host\share",
    r" \\host\share",
    r'"\\host\share"',
    r"“\\host\share”",
    "\u202a\\\\host\\share",
    "\t\\\\host\\share",
    r"\\?\C:\pictures",
    r"\\?\UNC\host\share",
    r"\\.\C:",
    r"\\.\pipe\x",
    r"\??\C:\x",
    "////host",
]
ADDRESSES = [
    "file:///C:/x",
    "FILE://host/share",
    "file:x",
    r"file:\\host",
    "http://host/x",
    "smb://host/x",
    "x+y.z://h",
]
DEVICES = [
    "NUL",
    "nul.txt",
    "con",
    "CONIN$",
    "conout$.safetensors",
    r"C:\x\com1",
    r"C:\x\COM¹.safetensors",
    "pictures/aux/cat.png",
    "lpt9 .txt",
    "nul:",
    "prn::$DATA",
    "/dev/zero",
    "/dev/../dev//stdin",
    "/proc/self/environ",
    "/./sys",
]
USUAL = [
    "",
    "pictures",
    r"C:\pictures\zorp",
    "C:/pictures/zorp",
    "D:",
    "/home/ann/pictures",
    "~/pictures",
    "~mine",
    "../pictures",
    r"..\pictures",
    "/device/x",
    "/home/dev/x",
    "/dev/shm/pictures",
    "console/nullify/auxiliary",
    "com10",
    "lpt",
    "10_zorp",
    "汉服 女孩",
    "a: b",
    "filed:x",
    "profile",
    "con-cat/x",
]


@pytest.mark.parametrize("text", [*NETWORK, *ADDRESSES, *DEVICES], ids=repr)
def test_what_reaches_further_is_refused_with_a_sentence(text: str) -> None:
    kind = "network path" if text in NETWORK else "address" if text in ADDRESSES else "device"
    assert kind in reach_problem(text)
    assert reach_problem(text).startswith("“{text}” ")


@pytest.mark.parametrize("text", USUAL, ids=repr)
def test_paths_of_this_computer_are_not(text: str) -> None:
    assert reach_problem(text) == ""


@pytest.mark.parametrize("text", [*NETWORK, *ADDRESSES], ids=repr)
def test_a_path_that_was_written_down_may_not_name_another_computer(text: str) -> None:
    plain = text.strip(' \t"“”\u202a')
    assert asks_another_computer(plain)


@pytest.mark.parametrize("text", [*USUAL, "/home/ann/aux/webui/models/Lora/a.safetensors", r"D:\con\a.png"], ids=repr)
def test_folders_that_only_windows_would_not_have_are_nobodys_damage(text: str) -> None:
    assert not asks_another_computer(text)


@given(st.text(st.sampled_from(" \t'\"\u200b\u202e\ufeff“"), max_size=5), st.sampled_from(["\\", "/"]))
def test_nothing_in_front_hides_a_network_path(front: str, separator: str) -> None:
    assert reach_problem(front + separator * 2 + "host")


@given(st.sampled_from(["con", "nul", "aux", "prn", "com3", "LPT³", "CONIN$", "clock$"]), st.text(max_size=5))
def test_an_ending_does_not_make_a_device_a_file(device: str, ending: str) -> None:
    assert is_device(device)
    assert is_device(f"{device}.{ending}")
    assert is_device(f"{device} .{ending}")
    assert not is_device(f"a{device}.{ending}")
