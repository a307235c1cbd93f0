"""The networks in the weights of the loaded checkpoint (extensions-builtin/Lora/networks.py)."""

import logging
import os
import re
from pathlib import Path

import network
import network_full
import network_lora
import torch
from modules import sd_hijack, shared
from safetensors.torch import load_file

module_types = [network_lora.ModuleTypeLora(), network_full.ModuleTypeFull()]
originals = None
extra_network_lora = None
available_networks = {}
available_network_aliases = {}
loaded_networks = []
networks_in_memory = {}
forbidden_network_aliases = {}


def assign_network_names_to_compvis_modules(sd_model):
    sd_model.network_layer_mapping = {}
    for part in (sd_model.cond_stage_model.wrapped, sd_model.model):
        for name, module in part.named_modules():
            module.network_layer_name = name.replace(".", "_")
            sd_model.network_layer_mapping[module.network_layer_name] = module


_RESNET = {"norm1": "in_layers_0", "conv1": "in_layers_2", "norm2": "out_layers_0", "conv2": "out_layers_3"}
_RESNET |= {"time_emb_proj": "emb_layers_1", "conv_shortcut": "skip_connection"}


def convert_diffusers_name_to_compvis(key, is_sd2):
    """A layer of a file, ``lora_unet_down_blocks_1_attentions_0_…``, as the host numbers its blocks (line 49)."""
    if key.startswith("lora_te_text_model"):
        return key.replace("lora_te_text_model", "transformer_text_model", 1)
    match = re.fullmatch(r"lora_unet_(down|up|mid)_blocks?_?(\d*)_(attentions|resnets)_(\d+)_(.+)", key)
    if match is None:
        return key.replace("lora_unet", "diffusion_model", 1)
    way, level, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest, place = (_RESNET.get(rest, rest), 0) if kind == "resnets" else (rest, 1)
    if way == "mid":
        return f"diffusion_model_middle_block_{1 if place else 2 * number}_{rest}"
    block = f"input_blocks_{1 + 3 * level + number}" if way == "down" else f"output_blocks_{3 * level + number}"
    return f"diffusion_model_{block}_{place}_{rest}"


def load_network(name, network_on_disk):
    net = network.Network(name, network_on_disk)
    net.mtime = os.path.getmtime(network_on_disk.filename)
    matched = {}
    for key_network, weight in load_file(network_on_disk.filename).items():
        layer, _, part = key_network.partition(".")
        key = convert_diffusers_name_to_compvis(layer, False)
        sd_module = shared.sd_model.network_layer_mapping.get(key)
        if sd_module is not None:
            matched.setdefault(key, network.NetworkWeights(key_network, key, {}, sd_module)).w[part] = weight
    for key, weights in matched.items():
        made = (kind.create_module(net, weights) for kind in module_types)
        net.modules[key] = next(module for module in made if module is not None)
    return net


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    already_loaded = {net.name: net for net in loaded_networks if net.name in names}
    for net in loaded_networks:
        for emb_name, embedding in net.bundle_embeddings.items():
            if embedding.loaded:
                sd_hijack.model_hijack.embedding_db.register_embedding_by_name(None, shared.sd_model, emb_name)
    loaded_networks.clear()
    missing = [name for name in names if name not in available_network_aliases]
    if missing:
        update_available_networks_by_names(missing)
    for i, name in enumerate(names):
        known = available_networks if name.lower() in forbidden_network_aliases else available_network_aliases
        network_on_disk, net = known.get(name), already_loaded.get(name) or networks_in_memory.get(name)
        if network_on_disk is not None:
            if net is None or os.path.getmtime(network_on_disk.filename) > net.mtime:
                try:
                    net = networks_in_memory[name] = load_network(name, network_on_disk)
                except Exception:
                    logging.exception("loading network %s", network_on_disk.filename)
                    continue
            net.mentioned_name = name
            network_on_disk.read_hash()
        if net is None:
            sd_hijack.model_hijack.comments.append(f"Lora not found: {name}")
            continue
        net.te_multiplier = te_multipliers[i] if te_multipliers else 1.0
        net.unet_multiplier = unet_multipliers[i] if unet_multipliers else 1.0
        net.dyn_dim = dyn_dims[i] if dyn_dims else 1.0
        loaded_networks.append(net)
    while len(networks_in_memory) > shared.opts.lora_in_memory_limit:
        networks_in_memory.pop(next(iter(networks_in_memory)))


def network_restore_weights_from_backup(self):
    """Outside of ``no_grad``, as there (line 396)."""
    if getattr(self, "network_weights_backup", None) is not None:
        self.weight.copy_(self.network_weights_backup)
    if getattr(self, "network_bias_backup", None) is not None:
        self.bias.copy_(self.network_bias_backup)


def network_apply_weights(self):
    network_layer_name = getattr(self, "network_layer_name", None)
    if network_layer_name is None:
        return
    current_names = getattr(self, "network_current_names", ())
    wanted_names = tuple((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded_networks)
    if getattr(self, "network_weights_backup", None) is None and wanted_names != ():
        if current_names != ():
            raise RuntimeError("no backup weights found and current weights are not unchanged")
        self.network_weights_backup = self.weight.to("cpu", copy=True)
        self.network_bias_backup = None if self.bias is None else self.bias.to("cpu", copy=True)
    if current_names == wanted_names:
        return
    network_restore_weights_from_backup(self)
    for net in loaded_networks:
        module = net.modules.get(network_layer_name)
        if module is None:
            continue
        with torch.no_grad():
            updown, ex_bias = module.calc_updown(self.weight)
            self.weight.copy_(self.weight + updown)
            if ex_bias is not None:
                self.bias.copy_(self.bias + ex_bias)
    self.network_current_names = wanted_names


def network_reset_cached_weight(self):
    self.network_current_names = ()
    self.network_weights_backup = self.network_bias_backup = None


def process_network_files(names=None):
    for path in sorted(Path(shared.cmd_opts.lora_dir).rglob("*.safetensors")):
        if names and path.stem not in names:
            continue
        try:
            entry = network.NetworkOnDisk(path.stem, str(path))
        except OSError:
            continue
        available_networks[path.stem] = entry
        if entry.alias in available_network_aliases:
            forbidden_network_aliases[entry.alias.lower()] = 1
        available_network_aliases[path.stem] = available_network_aliases[entry.alias] = entry


def update_available_networks_by_names(names):
    process_network_files(names)


def list_available_networks():
    for known in (available_networks, available_network_aliases, forbidden_network_aliases):
        known.clear()
    forbidden_network_aliases.update({"none": 1, "Addams": 1})
    process_network_files()
