"""Paths that would reach beyond this computer's folders, told by their letters alone, before any file call.

On Windows the mere question whether ``\\\\host\\share`` exists logs in at that host with the person's name and a hash
of their password, so such a path has to be refused before it is resolved, not after.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_ADDRESS = re.compile(r"(file|smb|nfs|https?|ftps?|davs?|webdavs?):|[a-z][a-z0-9+.-]+:[/\\]{2}", re.IGNORECASE)
_DEVICE = re.compile(r"con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³]", re.IGNORECASE)
_OWN_SHARE = re.match(r"//[^/]+/[^/]+/|$", str(Path(__file__).absolute()).replace("\\", "/").lower())
"""The network folder in which this program itself lies, where it does: what is there is no further away."""
_SYSTEM = re.compile(r"/(dev(?!/shm/)|proc|sys)(/|$)")


def is_device(name: str) -> bool:
    """Whether Windows takes a name for a device: ``con``, ``NUL.txt``, ``COM¹``, ``CONIN$``, with or without an ending.

    Reference: "Naming Files, Paths, and Namespaces", learn.microsoft.com, and ``GetFileAttributes`` tried on CONIN$.
    """
    return _DEVICE.fullmatch(re.split(r"[.:]", name, maxsplit=1)[0].rstrip(" ")) is not None


def reach_problem(text: str) -> str:
    """Why a path may not even be looked at, as a sentence with a place for the ``{text}``; else an empty string.

    Refused are network paths (``\\\\host\\share``, ``//host/share``), Windows' verbatim and device paths
    (``\\\\?\\``, ``\\\\.\\``, ``\\??\\``), addresses (``file:…``, ``https://…``) and devices (``NUL``, ``/dev/…``).
    """
    seen = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc")).strip(" \t\"'“”‘’„‚＂")
    slashed = seen.replace("\\", "/")
    if _is_network(slashed):
        return (
            "“{text}” is a network path, and none is opened; "
            "name a folder or file of this computer, or give the network folder a drive letter."
        )
    if _ADDRESS.match(seen):
        return "“{text}” is an address, and none is opened; write the path of a folder or file of this computer."
    if _SYSTEM.match(_without_dots(slashed)) or any(map(is_device, slashed.split("/"))):
        return "“{text}” names a device, not a file; rename the folder or file, or choose another."
    return ""


def asks_another_computer(path: str) -> bool:
    """Whether a path that some program wrote down names another computer; what it has of devices is its own."""
    return _is_network(path.strip().replace("\\", "/")) or _ADDRESS.match(path.strip()) is not None


def _is_network(slashed: str) -> bool:
    own = _OWN_SHARE[0] if _OWN_SHARE else ""
    return slashed.startswith(("//", "/?")) and not (own and slashed.lower().startswith(own))


def _without_dots(path: str) -> str:
    """The path with ``//``, ``.`` and ``..`` worked out by letters."""
    parts: list[str] = []
    for part in path.split("/")[1:]:
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts) if path.startswith("/") else path
