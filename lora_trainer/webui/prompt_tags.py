"""``<lora:…:lbw=…>`` in the WebUI's prompts.

The WebUI calls one object for all ``<lora:…>`` tags, in every pass (hires fix, img2img, passes of other extensions,
REST). Ours stands before the Lora extension's, lets it load and do everything that it does, and then puts views with
block weights (:mod:`lora_trainer.hosts.a1111.network_views`) in the place of the loaded networks. Before the next call
the host's own networks are put back, so that a prompt without block weights is exactly what it was and nothing is read
from disk again. Line numbers in comments are of commit 82a973c0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from modules import extra_networks, shared

from lora_trainer.core.errors import InputError, LoraTrainError
from lora_trainer.hosts.a1111 import settings as host
from lora_trainer.hosts.a1111.network_views import network_view, original
from lora_trainer.hosts.a1111.networks import lora_networks
from lora_trainer.network.blocks.prompt import BlockUse, as_the_webui_reads, block_use, is_ours, webui_reads
from lora_trainer.webui.callbacks import register

log = logging.getLogger(__name__)
FIELD, HIRES_FIELD = "Lora Train block weights", "Lora Train hires block weights"
_MARK = "lora_train_resolved="
_OTHER = "lora_block_weight.py"


class _Loaded(NamedTuple):
    """A network that the host has loaded: its place in ``loaded_networks``, its tag, and what the tag asks of us."""

    place: int
    params: Any
    use: BlockUse | None


def install() -> None:
    """Stand before the Lora extension's object; nothing when that extension is off.

    To be called when all extensions have registered theirs (``on_app_started``).
    """
    inner = extra_networks.extra_network_registry.get("lora")
    if inner is None or lora_networks() is None or isinstance(inner, LoraBlocks):
        return
    blocks = LoraBlocks(inner)
    extra_networks.register_extra_network(blocks)
    extra_networks.register_extra_network_alias(blocks, "lyco")
    register("cfg_denoiser", lambda params: blocks.at_step(params.sampling_step + 1), __file__)


class LoraBlocks(extra_networks.ExtraNetwork):
    """The object for ``<lora:…>`` and ``<lyco:…>`` tags: the Lora extension's own, with block weights added."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.name)
        self.inner = inner
        self._stepped: list[tuple[Any, BlockUse]] = []
        self._noticed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """Called for every batch of every pass with the prompt's tags; see ``ExtraNetwork.activate``."""
        networks = lora_networks()
        # The host looks for a loaded network by its name before it reads the file.
        networks.loaded_networks[:] = [original(network) for network in networks.loaded_networks]
        self._stepped = []
        uses = {} if self._stands_aside(p, params_list) else _read(p, params_list)
        loadable = _loadable(params_list, uses)
        self.inner.activate(p, loadable)
        loaded = list(_matched(networks.loaded_networks, loadable, uses))
        _explain(p, loaded, uses.values(), networks.loaded_networks)
        self._stepped = _apply(networks.loaded_networks, loaded)
        self.at_step(1)
        _record(p, uses.values())

    def deactivate(self, p: Any) -> None:
        """Called when a batch is done."""
        self.inner.deactivate(p)

    def at_step(self, step: int) -> None:
        """Switch the UNet's multiplier of tags with ``start`` and ``stop``; ``step`` is counted from 1.

        The WebUI counts a step when it is done, so the second step still has the number 1. The extension
        sd-webui-lora-block-weight goes by the same number, and a prompt means the same here.
        """
        for view, use in self._stepped:
            view.unet_multiplier = use.tag.unet_weight if use.tag and use.tag.active(step) else 0.0

    def _stands_aside(self, p: Any, params_list: Sequence[Any]) -> bool:
        """Whether block weights are not ours to apply: switched off, or the other extension does it in this pass."""
        if not shared.opts.data.get("lora_train_block_weights", True):
            return True
        if not _other_is_active(p):
            return False
        if any(is_ours(_items(params)) for params in params_list):
            notice = InputError(
                "The block weights of this picture are left to the extension sd-webui-lora-block-weight, which is "
                "active; switch it off to use those of LoRA Train."
            )
            p.comment(host.sentence(notice))
            if not self._noticed:
                log.warning("%s", notice)
            self._noticed = True
        return True


def _other_is_active(p: Any) -> bool:
    """Does sd-webui-lora-block-weight work in this pass? Its second field is the switch."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or ()
    args = getattr(p, "script_args", None) or ()
    return any(
        Path(str(script.filename)).name == _OTHER and any(args[script.args_from + 1 : script.args_from + 2])
        for script in scripts
    )


# ------------------------------------------------------------------ reading the tags
def _read(p: Any, params_list: Iterable[Any]) -> dict[int, BlockUse]:
    """The tags that are ours, by the id of the host's object for them."""
    found = _uses(p, params_list)
    for params in params_list:
        params.named = as_the_webui_reads(params.named)
    _mark(params_list, found)
    # The conditioning of the hires pass may be made before its tags are activated (processing.py:1507).
    waiting = getattr(p, "hr_extra_network_data", None) or {}
    for params in (waiting.get(name, ()) for name in ("lora", "lyco")):
        _mark(params, _uses(p, params))
    return found


def _uses(p: Any, params_list: Iterable[Any]) -> dict[int, BlockUse]:
    asking = [params for params in params_list if is_ours(_items(params))]
    if not asking:
        return {}
    seed = int((getattr(p, "seeds", None) or [0])[0])
    presets, trouble = None, None
    try:
        presets = host.person_presets()
    except InputError as error:
        trouble = error
    found = {}
    for params in asking:
        use = block_use(_items(params), host.architecture(), presets, seed)
        if use is not None:
            found[id(params)] = replace(use, weights=None, problem=trouble) if trouble and use.weights else use
    return found


def _items(params: Any) -> list[str]:
    return [str(item) for item in params.items if not str(item).startswith(_MARK)]


def _mark(params_list: Iterable[Any], uses: dict[int, BlockUse]) -> None:
    """Write the resolved numbers into the host's object: its cache of prompts' conditioning compares nothing else, and
    ``lbw=R,…`` or a changed preset is not the same text encoder although it is the same text.
    """
    for params in params_list:
        use = uses.get(id(params))
        if use and use.text:
            params.items = [*_items(params), _MARK + use.text]


def _loadable(params_list: list[Any], uses: dict[int, BlockUse]) -> list[Any]:
    """All tags but those at which the host would stop: it would draw with the last picture's LoRAs then."""
    kept = [params for params in params_list if id(params) not in uses or webui_reads(_items(params))]
    return params_list if len(kept) == len(params_list) else kept


def _matched(loaded: Sequence[Any], params_list: Iterable[Any], uses: dict[int, BlockUse]) -> Iterable[_Loaded]:
    """The loaded networks with their tags; the host leaves out what it cannot load (networks.py:325)."""
    place = 0
    for params in params_list:
        if place < len(loaded) and params.positional and loaded[place].mentioned_name == params.positional[0]:
            yield _Loaded(place, params, uses.get(id(params)))
            place += 1


# ------------------------------------------------------------------ applying them
def _apply(loaded: list[Any], found: Sequence[_Loaded]) -> list[tuple[Any, BlockUse]]:
    """Put views in the places of networks with block weights or steps; returns those with steps.

    A LoRA that stands in the prompt twice is one object of the host's, with the last tag's multipliers; with block
    weights each tag counts for itself.
    """
    ours = {id(loaded[place]) for place, _, use in found if use and _asks(use)}
    stepped = []
    for place, params, use in found:
        network = loaded[place]
        if use and use.tag and _asks(use):
            loaded[place] = network_view(network, use.weights, use.tag.te, use.tag.unet_weight, use.tag.dyn)
            if use.tag.start is not None or use.tag.stop is not None:
                stepped.append((loaded[place], use))
        elif id(network) in ours:
            loaded[place] = network_view(network, None, *_multipliers(params))
    return stepped


def _asks(use: BlockUse) -> bool:
    return bool(use.tag and (use.weights or use.tag.start is not None or use.tag.stop is not None))


def _multipliers(params: Any) -> tuple[float, float, int | None]:
    """Of a plain tag, as the host reads them (extra_networks_lora.py:34)."""
    te = float(params.positional[1]) if len(params.positional) > 1 else 1.0
    te = float(params.named.get("te", te))
    unet = float(params.positional[2]) if len(params.positional) > 2 else te
    dyn = params.named.get("dyn", params.positional[3] if len(params.positional) > 3 else None)
    return te, float(params.named.get("unet", unet)), None if dyn is None else int(dyn)


# ------------------------------------------------------------------ telling the person
def _explain(p: Any, found: Iterable[_Loaded], uses: Iterable[BlockUse], loaded: Sequence[Any]) -> None:
    """One sentence below the picture for each thing that is not as the tag says."""
    problems: list[LoraTrainError] = [use.problem for use in uses if use.problem]
    for problem in problems:
        log.warning("%s", problem)
    for place, _, use in found:
        off = use.weights.unlisted(loaded[place].modules) if use and use.weights else ()
        if use and use.tag and use.weights and off:
            problems.append(
                InputError(
                    "{name}: the list of {count} block weights does not name the convolutions' blocks, so {off} layers "
                    "are off; a longer list sets these too.",
                    name=use.tag.name,
                    count=len(use.weights.blocks),
                    off=len(off),
                )
            )
    for problem in problems:
        p.comment(host.sentence(problem))


class _Text(str):
    """An entry of the infotext that differs from batch to batch.

    The WebUI numbers the pictures of a batch and those of all batches by the same argument (processing.py:935, 960),
    so the seed tells which picture is meant. JSON has the text of the batch that was drawn last.
    """

    by_seed: dict[int, str]

    def __call__(self, p: Any, index: int, all_seeds: Sequence[int], use_main_prompt: bool, **more: Any) -> str | None:
        """Called by ``create_infotext`` with all that it knows."""
        seed = p.all_seeds[0] if use_main_prompt else all_seeds[index]
        return self.by_seed.get(seed, self) or None


def _record(p: Any, uses: Iterable[BlockUse]) -> None:
    """Every number that was used into the infotext, by picture: random ones differ from batch to batch."""
    hires = bool(getattr(p, "is_hr_pass", False))
    if int(getattr(p, "iteration", 0) or 0) == 0 and not hires:
        p.lora_train_blocks = {}, {}  # a copy of a processed picture (a cell, an inner pass) must not share it
    texts = p.__dict__.setdefault("lora_train_blocks", ({}, {}))
    text = "; ".join(use.text for use in uses if use.text)
    texts[hires].update(dict.fromkeys(getattr(p, "seeds", None) or [0], text))
    if hires:
        same = all(texts[0].get(seed) == text for seed, text in texts[1].items())
        _write(p, HIRES_FIELD, {} if same else texts[1], text)
    else:
        p.extra_generation_params.pop(HIRES_FIELD, None)
        _write(p, FIELD, texts[0], text)


def _write(p: Any, field: str, texts: dict[int, str], text: str) -> None:
    if not any(texts.values()):
        p.extra_generation_params.pop(field, None)  # the cells of the XYZ script share this mapping
        return
    entry = _Text(text)
    entry.by_seed = texts
    p.extra_generation_params[field] = entry if len(set(texts.values())) > 1 else text
