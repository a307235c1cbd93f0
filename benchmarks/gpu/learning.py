"""Whether it learns on the card as it does on a CPU, repeats itself, and writes down what it has learned."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.runner import Check, run_check
from benchmarks.gpu.setting import Setting
from lora_trainer.core.errors import InputError, RunError
from lora_trainer.demo.run import demo_config, make_pictures
from lora_trainer.hosts.base import ModelRequest
from lora_trainer.hosts.standalone.host import StandaloneHost
from lora_trainer.jobs.service import Jobs
from lora_trainer.model.clip import name_in_files
from lora_trainer.model.precision import resolve_precision
from lora_trainer.network.adapters import adapters_for
from lora_trainer.network.lora_file import read_lora

SAME_SHARE = 0.1
"""How far a held-out loss may be from the CPU's, as a share of what the CPU's run gained; see benchmarks/README.md."""
_REFERENCE = Check("reference", "", "benchmarks.gpu.learning:reference", 90)
_DETERMINED = Check("determined", "", "benchmarks.gpu.learning:determined", 60)


def check(setting: Setting, notes: Notes) -> None:
    """The parts, the reference on the CPU first."""
    drawn(setting)
    wanted = notes.part("on the CPU, fp32", _from_child, _REFERENCE, setting, {"CUDA_VISIBLE_DEVICES": ""})
    learner = Learner(setting)
    found = {}
    for precision in ("fp16", "bf16", "fp32"):
        found[precision] = notes.part(precision, partial(learner.beside, precision, wanted))
    usual = "fp32" if setting.cpu else "fp16"
    notes.part("same seed twice", partial(twice, learner, usual, found[usual]))
    notes.part("an overflow", overflow, setting)
    if "path" in found["fp32"]:
        notes.part("view + adapter", applied, learner, Path(found["fp32"]["path"]))


def drawn(setting: Setting) -> Path:
    """The small checkpoint's pictures."""
    folder = setting.place / "drawn"
    if not folder.is_dir():
        make_pictures(folder, count=4 if setting.cpu else 24)
    return folder


class Learner:
    """Runs of the small checkpoint, as the demo has them.

    Args:
        setting: of the sitting.
        name: of the folder that they are kept in.
    """

    def __init__(self, setting: Setting, name: str = "learning") -> None:
        self.setting = setting
        self.host = StandaloneHost(setting.place / name)
        self.jobs = Jobs(self.host)
        shorter = {
            "training.steps": 4 if setting.cpu else 60, "save.precision": "fp32", "samples.steps": 1,
            "samples.prompts": [], "validation.timesteps": 2 if setting.cpu else 8,
            "data.resolution": 64 if setting.cpu else 128, "validation.every_epochs": 1000, "save.every_epochs": 0,
        }  # fmt: skip
        self.config = demo_config(drawn(setting)).with_values(shorter)

    def learn(self, name: str, precision: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One run: held-out losses before and after, the file and the hash of what is in it.

        Raises:
            InputError: this precision is refused.
            RunError: the run failed.
        """
        config = self.config.with_values({"name": name, "training.precision": precision, **(values or {})})
        with self.host.session(ModelRequest.of(config)) as session:
            resolve_precision(precision, session.model.device, session.model.unet.dtype)
        run = self.jobs.submit(config)
        self.jobs.wait(run)
        if run.state != "done":
            raise RunError("The run ended as {state}: {message}", state=run.state, message=run.manifest["message"])
        path = Path(run.manifest["files"][-1]["path"])
        losses = run.manifest["validation"]
        return {
            "before": losses["base"], "after": losses["last"], "gain": losses["base"] - losses["last"],
            "path": str(path), "sha256": tensors_hash(path), "precision": run.manifest["precision"],
        }  # fmt: skip

    def beside(self, precision: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """One run, held against the CPU's."""
        try:
            found = self.learn(precision, precision)
        except InputError as refusal:
            return {"refused": str(refusal), "says": f"refused: {refusal}"}
        return {**found, **compared(found, wanted)}


def compared(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Whether two runs learned the same within noise; both have ``before``, ``after`` and ``gain``."""
    says = f"held-out loss {found['before']:.4f} → {found['after']:.4f}"
    if "after" not in wanted:
        return {"says": f"{says}; nothing to hold it against"}
    off = abs(found["after"] - wanted["after"]) / abs(wanted["gain"])
    sentence = f"the held-out loss is the CPU's within {SAME_SHARE:.0%} of its gain"
    return {"off": off, "says": f"{says}, {off:.1%} of the CPU's gain away", "holds": {sentence: off <= SAME_SHARE}}


def tensors_hash(path: Path) -> str:
    """SHA-256 of a file's tensors, without the header, which has times in it."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


# ------------------------------------------------------------------ in processes of their own
def reference(setting: Setting, notes: Notes) -> None:
    """The same run where no card is to be seen."""
    notes.part("run", lambda: Learner(setting, "reference").learn("reference", "fp32"))


def determined(setting: Setting, notes: Notes) -> None:
    """Two runs with deterministic kernels, and what torch says of operations that have none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    learner, usual = Learner(setting, "determined"), "fp32" if setting.cpu else "fp16"

    def both() -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hashes = {learner.learn(name, usual)["sha256"] for name in ("once", "again")}
        said = sorted({str(w.message).splitlines()[0][:200] for w in caught if "determinis" in str(w.message)})
        return {"identical": len(hashes) == 1, "without_such_kernels": said}

    notes.part("run", both)


def _from_child(check: Check, setting: Setting, environment: Mapping[str, str]) -> dict[str, Any]:
    """The only part of a check that needs a process of its own."""
    outcome = run_check(check, setting, check.limit, environment, inside=True)
    found = outcome["parts"].get("run", {})
    if "failed" in found or not found:
        lines = found.get("failed") or outcome.get("error") or [""]
        raise RunError("The run in its own process is {state}: {line}", state=outcome["state"], line=lines[-1])
    return {"says": f"{outcome['seconds']:.0f} s", **found}


def twice(learner: Learner, precision: str, first: Mapping[str, Any]) -> dict[str, Any]:
    """The run again; when its file differs, whether deterministic kernels make it the same."""
    again = learner.learn("again", precision)
    if again["sha256"] == first["sha256"]:
        return {"identical": True, "says": "byte-identical"}
    found = _from_child(_DETERMINED, learner.setting, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
    reason = "kernels that are not deterministic" if found["identical"] else "not found: differs with such kernels too"
    away = abs(again["after"] - first["after"])
    says = f"files differ (held-out loss by {away:.1e}); reason: {reason}"
    return {"identical": False, "determined": found, "says": says, "holds": {"the reason is known": found["identical"]}}


# ------------------------------------------------------------------ loss scaling
def overflow(setting: Setting) -> dict[str, Any]:
    """A gradient that is infinite in one step: it is left out, and the training goes on with half the scale."""
    small = Setting(setting.folder, cpu=True)
    bench = Bench(small)
    card = bench.device.type == "cuda"
    trainer, plan = bench.trainer("fp16" if card else "fp32", {"training.batch_size": 2})
    if not card:  # the CPU's runs need no scaling, but the same code does it
        trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)  # type: ignore[assignment]
    number = settle(trainer, plan)
    scale, weights = trainer.scaler.get_scale(), [p.detach().clone() for p in trainer.parameters]
    handle = trainer.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    trainer.step(plan.step(number))
    handle.remove()
    after = trainer.scaler.get_scale()
    unchanged = same(weights, trainer.parameters)
    loss = float(trainer.step(plan.step(number + 1)))
    goes_on = not same(weights, trainer.parameters) and loss == loss
    return {
        "scale": scale,
        "scale_after": after,
        "says": f"scale {scale:g} → {after:g}" + ("" if card else " (torch's scaler for CPUs)"),
        "holds": {"no weight changed": unchanged, "the scale is halved": after == scale / 2, "it goes on": goes_on},
    }


def settle(trainer: Any, plan: Any) -> int:
    """Steps until one is not left out, so that the scale fits; returns the number of the next."""
    for number in range(1, 20):
        before = trainer.scaler.get_scale()
        trainer.step(plan.step(number))
        if trainer.scaler.get_scale() >= before:
            return number + 1
    raise RunError("The scale did not settle in 20 steps; it is {scale}.", scale=trainer.scaler.get_scale())


def same(weights: list[torch.Tensor], others: list[Any]) -> bool:
    """Whether all are equal, bit for bit."""
    return all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


# ------------------------------------------------------------------ what a LoRA is
def applied(learner: Learner, path: Path) -> dict[str, Any]:
    """The view with the file's adapters, against copies of its weights with ΔW = (alpha / rank) · up @ down added.

    In fp32 without TF32, so that nothing but an error in the adapters makes a difference.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with learner.host.session(ModelRequest.of(learner.config)) as session:
        model = session.model
    tensors = read_lora(path)
    unet, text = (copy.deepcopy(part).float().eval() for part in (model.unet, model.text[0].model))
    merged_unet, merged_text = merged(unet, tensors, "lora_unet_"), merged(text, tensors, "lora_te_")
    plain = outputs(unet, text)
    adapters_for({"lora_unet_": unet, "lora_te_": text}, tensors)
    wanted, found = outputs(merged_unet, merged_text), outputs(unet, text)
    error, effect = (float((each - wanted).norm() / wanted.norm()) for each in (found, plain))
    return {
        "error": error,
        "effect": effect,
        "says": f"relative error {error:.1e}; without the LoRA {effect:.1e}",
        "holds": {"the error is at most 1e-4 and a hundredth of the effect": error <= min(1e-4, effect / 100)},
    }


@torch.no_grad()
def merged(part: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> nn.Module:
    """A copy with a file's LoRA in its weights, by the definition alone."""
    made = copy.deepcopy(part)
    for name, module in made.named_modules():
        named = name_in_files(name) if prefix == "lora_te_" else name
        key = prefix + named.replace(".", "_")
        if f"{key}.lora_down.weight" not in tensors:
            continue
        down, up = (tensors[f"{key}.lora_{which}.weight"].double().flatten(1) for which in ("down", "up"))
        change = float(tensors[f"{key}.alpha"]) / down.shape[0] * (up @ down)
        module.weight.copy_(module.weight.double() + change.reshape(module.weight.shape).to(module.weight.device))
    return made


@torch.no_grad()
def outputs(unet: nn.Module, text: nn.Module) -> torch.Tensor:
    """What both make of a fixed input, one after the other."""
    device, rng = next(unet.parameters()).device, torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 600, (2, 77), generator=rng).to(device)
    latents = torch.randn(2, 4, 16, 16, generator=rng).to(device)
    return unet(latents, torch.tensor([10, 700], device=device), text(tokens).last_hidden_state).sample
