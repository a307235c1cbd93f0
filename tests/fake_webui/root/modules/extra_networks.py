"""Tags ``<name:…>`` of prompts and the objects that they are for (extra_networks.py)."""

import logging
import re
from collections import defaultdict

extra_network_registry = {}
extra_network_aliases = {}
re_extra_net = re.compile(r"<(\w+):([^>]+)>")


def register_extra_network(extra_network):
    extra_network_registry[extra_network.name] = extra_network


def register_extra_network_alias(extra_network, alias):
    extra_network_aliases[alias] = extra_network


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items, self.positional, self.named = items or [], [], {}
        for item in self.items:
            parts = item.split("=", 2) if isinstance(item, str) else [item]
            if len(parts) == 2:
                self.named[parts[0]] = parts[1]
            else:
                self.positional.append(item)

    def __eq__(self, other):
        return self.items == other.items


class ExtraNetwork:
    def __init__(self, name):
        self.name = name

    def activate(self, p, params_list):
        raise NotImplementedError

    def deactivate(self, p):
        raise NotImplementedError


def lookup_extra_networks(extra_network_data):
    found = {}
    for name, params in extra_network_data.items():
        network = extra_network_registry.get(name) or extra_network_aliases.get(name)
        if network is not None:
            found.setdefault(network, []).extend(params)
    return found


def activate(p, extra_network_data):
    """One that fails is told in the log, and the picture is drawn all the same (line 134)."""
    named = lookup_extra_networks(extra_network_data)
    for network in [*named, *(each for each in extra_network_registry.values() if each not in named)]:
        try:
            network.activate(p, named.get(network, []))
        except Exception:
            logging.exception("activating extra network %s", network.name)


def deactivate(p, extra_network_data):
    for network in extra_network_registry.values():
        network.deactivate(p)


def parse_prompt(prompt):
    found = defaultdict(list)

    def taken(match):
        found[match[1]].append(ExtraNetworkParams(items=match[2].split(":")))
        return ""

    return re.sub(re_extra_net, taken, prompt), found


def parse_prompts(prompts):
    """The prompts without tags, and the tags of the first."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else None
