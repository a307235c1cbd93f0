"""What a host gives to a run. The core knows nothing else of the program it runs in.

A host is three things, and who needs only one of them asks for that: the :class:`ModelHost` has a checkpoint and draws
with it, the :class:`LoraStore` keeps LoRA files and what goes with them, the :class:`HostPage` tells what the person
in front of the program sees and may do.

Another program moves in with a folder of its own beside ``a1111`` and ``standalone``, whose ``host.py`` has a class
with all of :class:`Host`, and with one line where it is made: ``shared_jobs(TheHost)`` in the file that the program
loads (``scripts/lora_train.py`` for the WebUI, :func:`lora_trainer.ui.standalone.serve` without one). Nothing else
names a host. ``tests/hosts/test_base.py`` says what all of them must hold; put the new one into its list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_trainer.config.train import SamplesConfig, TrainConfig
from lora_trainer.model.loaded import LoadedModel

if TYPE_CHECKING:
    from PIL import Image

    from lora_trainer.model.families import CheckpointInfo
    from lora_trainer.network.blocks.presets import Presets


@dataclass(frozen=True)
class Folders:
    """Where a host keeps things: LoRA files, runs, cached latents, the person's presets."""

    loras: Path
    runs: Path
    cache: Path
    presets: Path


@dataclass(frozen=True)
class ModelRequest:
    """Which model somebody needs, and how its captions are read.

    Attributes:
        checkpoint: path of a file; empty for the one that the host has, and for hosts that load none themselves.
        clip_skip: of the text encoder, counted from 1; 0 for the host's own setting.
        work: what it is needed for, which the host's progress bar shows.
    """

    checkpoint: str = ""
    clip_skip: int = 0
    work: str = ""

    @classmethod
    def of(cls, config: TrainConfig) -> ModelRequest:
        """What a run of these settings needs."""
        return cls(config.checkpoint, config.training.clip_skip or 0, config.name)


@dataclass(frozen=True)
class DrawRequest:
    """One picture to draw; fields as in txt2img.

    ``more`` has what only the host knows: names and values of its own, in the order of their names.
    """

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "Euler a"
    seed: int = 1
    more: tuple[tuple[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file used at a weight, as ``<lora:name:weight:lbw=list>`` does.

    Attributes:
        path: the file.
        weight: of text encoder and UNet.
        lbw: block weights, a preset's name or a list of numbers; empty for none.
    """

    path: Path
    weight: float = 1.0
    lbw: str = ""

    @property
    def tag(self) -> str:
        """What to type into a prompt."""
        blocks = f":lbw={self.lbw}" if self.lbw else ""
        return f"<lora:{self.path.stem}:{self.weight:g}{blocks}>"


class Session(Protocol):
    """A run's hold on the loaded model; leaving it restores the host exactly."""

    @property
    def model(self) -> LoadedModel:
        """The view of the model."""

    def turn(self, *, drawing: bool = False) -> AbstractContextManager[None]:
        """One slice of work with the model to ourselves.

        Args:
            drawing: nothing is done but :meth:`draw`, which needs no clean weights: the last picture's LoRA may stay
                in them. Otherwise they are clean.

        Raises:
            CheckpointChanged: the host has another checkpoint now.
        """

    on_wait: Callable[[bool], object]
    """Called when a turn has to wait for somebody's picture, and when it is over."""

    def wanted(self) -> bool:
        """Whether somebody waits for the model, so that the turn should end soon."""

    def draw(self, requests: Sequence[DrawRequest], lora: LoraUse | None) -> list[Image.Image]:
        """Draw pictures together, as the host would; call it in a turn.

        Args:
            requests: which differ in nothing but prompt and seed.
            lora: used in all of them.

        Returns:
            RGB pictures; ``info["parameters"]`` is the WebUI's text of how each was made.

        Raises:
            RunError: the drawing was interrupted.
            torch.cuda.OutOfMemoryError: too many at once; nothing is lost.
        """

    def draw_settings(self) -> str:
        """The host's own settings that change a picture (Clip skip and the like), in a comparable form."""

    def show_progress(self, name: str, step: int, steps: int) -> None:
        """Tell the host's own progress bar."""

    def interrupted(self) -> bool:
        """Whether the host's own Interrupt was pressed for us since the last call."""


class ModelHost(Protocol):
    """A program with a checkpoint, and what draws with it."""

    name: str
    reads_tags: bool
    """Whether ``<lora:…>`` in a prompt works when a :class:`Session` draws it."""

    def check(self, request: ModelRequest) -> CheckpointInfo:
        """What would be trained on, found without loading anything heavy.

        Raises:
            InputError: no checkpoint, or one that cannot be trained.
        """

    def session(self, request: ModelRequest) -> AbstractContextManager[Session]:
        """Take hold of the model for a run."""

    def load_checkpoint(self, name: str, sha256: str) -> None:
        """Load a checkpoint that was trained on before.

        Raises:
            InputError: there is none of this name and hash.
        """

    def chosen_checkpoint(self) -> str:
        """What the host's own list of checkpoints calls the chosen one, for its page; empty where it has no list."""

    def checkpoints(self) -> Sequence[Path]:
        """The checkpoint files that it offers, ``.safetensors`` only."""

    def native_resolution(self, request: ModelRequest) -> int:
        """Side in pixels that the checkpoint was trained at; 512 when nobody knows."""


class LoraStore(Protocol):
    """Where a program keeps LoRA files, and what it knows of them."""

    folders: Folders

    def announce(self, path: Path) -> None:
        """Make a new LoRA file known, so that its card and name work at once."""

    def block_presets(self) -> Presets:
        """Named block weights: the shipped ones and the person's own.

        Raises:
            InputError: a file of presets cannot be read.
        """


class HostPage(Protocol):
    """What the person in front of the program sees and may do."""

    readable: Sequence[Path] | None
    """Folders that people may read from; ``None`` for all, where only this machine's user comes in."""

    def language(self) -> str:
        """Language of the page, e.g. ``"en"`` or ``"zh"``."""

    def samplers(self) -> Sequence[str]:
        """Names of the samplers that :meth:`Session.draw` knows."""

    def is_common_word(self, word: str) -> bool:
        """Whether the checkpoint's tokenizer has the word as one token, so that it means something already."""

    def words(self, trigger: str) -> Sequence[tuple[str, str]]:
        """What the host's prompts take parts of a trigger for, where training reads the words as they stand.

        Returns:
            Kind and name of each: an ``"embedding"`` that takes the place of words, a ``"style"`` of that name, a
            ``"wildcard"`` that is replaced, or ``"syntax"`` that is carried out.
        """


class Host(ModelHost, LoraStore, HostPage, Protocol):
    """A program that LoRA Train runs in, whole."""


def draw_request(samples: SamplesConfig, prompt: str, resolution: int) -> DrawRequest:
    """A sample of the config."""
    return DrawRequest(
        prompt=prompt,
        negative=samples.negative,
        width=samples.width or resolution,
        height=samples.height or resolution,
        steps=samples.steps,
        cfg=samples.cfg,
        sampler=samples.sampler,
        seed=samples.seed,
    )
