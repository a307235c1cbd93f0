"""The WebUI's built-in Lora extension: files it knows, and weights without them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from modules import shared

from lora_trainer.core.errors import InputError, RunError
from lora_trainer.hosts.a1111.network_views import original
from lora_trainer.hosts.base import DrawRequest, LoraUse
from lora_trainer.network.blocks.lora_tag import TAG


# ------------------------------------------------------------------ LoRA networks of the host
def clean_weights(sd_model: Any) -> None:
    """Take every network that a generation left in the weights out again (networks.py:411).

    Raises:
        RunError: a layer cannot be restored.
    """
    networks = lora_networks()
    mapping = getattr(sd_model, "network_layer_mapping", {})
    patched = [layer for layer in mapping.values() if getattr(layer, "network_current_names", ())]
    if not patched or networks is None:
        return
    networks.load_networks([])  # also takes back the embeddings that came with a network
    with torch.no_grad():  # the host restores outside of it, which fails on parameters that are being trained
        for layer in patched:
            networks.network_apply_weights(layer)
    if any(getattr(layer, "network_current_names", ()) for layer in patched):
        raise RunError(
            "A LoRA of the last picture could not be taken out of the checkpoint; load the checkpoint again."
        )


def own_parameters(requests: Sequence[DrawRequest], tag: str) -> dict[str, Any]:
    """The WebUI's own parameters of pictures that are drawn together; of one variation seed it would count up."""
    found = dict(requests[0].more)
    if "override_settings" in found:
        found["override_settings"] = dict(found["override_settings"])
    if "subseed" in found:
        found["subseed"] = [found["subseed"]] * len(requests)
    if "hr_prompt" in found:
        found["hr_prompt"] = [found["hr_prompt"] + tag] * len(requests)
    return found


@contextmanager
def known_network(lora: LoraUse | None) -> Iterator[str]:
    """Make a file known under its name for one picture; gives the prompt's tag."""
    networks = lora_networks()
    if lora is None:
        yield ""
        return
    if networks is None:
        raise InputError("The WebUI's Lora extension is switched off, so no LoRA can be drawn; switch it on.")
    if lora.lbw and not shared.opts.data.get("lora_train_block_weights", True):
        raise InputError("Block weights in prompts are switched off; switch them on in Settings, LoRA Train.")
    name = lora.path.stem
    known = networks.available_networks.get(name)
    if known is None or Path(known.filename) != lora.path:
        import network  # of the Lora extension

        entry = network.NetworkOnDisk(name, str(lora.path))
        networks.available_networks[name] = networks.available_network_aliases[name] = entry
    try:
        yield lora.tag
    finally:
        if known is None and not _is_within(lora.path, Path(shared.cmd_opts.lora_dir)):
            networks.available_networks.pop(name, None)
            networks.available_network_aliases.pop(name, None)
            networks.networks_in_memory.pop(name, None)


def remember(network: Any) -> None:
    """Let the host find a network among those that are loaded, from where :func:`clean_weights` took it.

    It reads the file only when it is newer (networks.py:311). One that brings embeddings is left to be read again.
    """
    if network is not None and not network.bundle_embeddings:
        lora_networks().loaded_networks.append(network)


def loaded_networks(lora: LoraUse | None) -> Any:
    """The network that a picture was drawn with.

    Raises:
        InputError: the host has drawn without it, which it says only in its log (networks.py:320).
    """
    if lora is None:
        return None
    for network in map(original, lora_networks().loaded_networks):
        if network.name == lora.path.stem:
            return network
    raise InputError("The WebUI could not load {path}; its console tells why.", path=lora.path)


def require_tags(prompt: str) -> None:
    """See that a picture was drawn with every LoRA of its prompt's own tags.

    Raises:
        InputError: as for :func:`loaded_networks`.
    """
    wanted = {match[2].split(":")[0] for match in TAG.finditer(prompt)}
    networks = lora_networks()
    loaded = {network.name for network in map(original, networks.loaded_networks)} if networks else set()
    if missing := wanted - loaded:
        raise InputError("The WebUI could not load the LoRA {name}; its console tells why.", name=min(missing))


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def lora_networks() -> Any:
    """The built-in Lora extension's ``networks`` module; ``None`` when the extension is off."""
    module = sys.modules.get("networks")
    return module if hasattr(module, "network_apply_weights") else None


def reachable(name: str, path: Path | None = None) -> str:
    """The name, when a prompt with it loads the file of that name (and not one with it as its alias).

    Args:
        name: of a file, without folder and extension.
        path: the file that is meant; any when ``None``.

    Raises:
        InputError: there is no such file, or another one of that name hides it.
    """
    networks = lora_networks()
    if networks is None:
        raise InputError("The WebUI's Lora extension is switched off; switch it on to use LoRA files.")
    if not _is_known(networks, name, path):
        networks.update_available_networks_by_names([name])  # also when only an alias was known
    known = networks.available_networks.get(name)
    if known is None or not Path(known.filename).is_file():
        raise InputError("There is no LoRA file named {name}; names of files count, not aliases.", name=name[:200])
    if path is not None and not Path(known.filename).samefile(path):
        raise InputError(
            "{path} cannot be used in a prompt: {other} has the same name; rename one of them.",
            path=path,
            other=known.filename,
        )
    return name


def _is_known(networks: Any, name: str, path: Path | None) -> bool:
    """Does the host load this very file for the name (networks.py:315)?"""
    known = networks.available_networks.get(name)
    forbidden = name.lower() in networks.forbidden_network_aliases
    if known is None or not (forbidden or networks.available_network_aliases.get(name) is known):
        return False
    return Path(known.filename).is_file() and (path is None or Path(known.filename) == path)
