"""REST, under ``/lora-train/v1`` on the host's own app, as closed as its page (:mod:`lora_trainer.api.guard`)."""

from __future__ import annotations

from typing import Any

from fastapi import Query, Response

from lora_trainer.api.http import Document, StrictJson, flag_in, whole_in
from lora_trainer.config.schema import require_known
from lora_trainer.config.train import TrainConfig, json_schema
from lora_trainer.core.errors import InputError
from lora_trainer.jobs.health import health_report
from lora_trainer.jobs.service import Jobs
from lora_trainer.runs.control import StopRequest
from lora_trainer.runs.run import Run

RUNS_A_PAGE = 100
ENTRIES_A_PAGE = 10_000
_LONG = ("files", "samples", "dataset")
Offset = Query(0, ge=0, le=2**31)
Limit = Query(RUNS_A_PAGE, ge=1, le=1000)
LogLimit = Query(ENTRIES_A_PAGE, ge=1, le=ENTRIES_A_PAGE)


class Api:
    """The handlers; each is a thin call of :class:`Jobs`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def health(self) -> dict[str, Any]:
        """Version, checkpoint, and what is being done."""
        return health_report(self._jobs)

    def schema(self) -> dict[str, Any]:
        """JSON schema of a run."""
        return json_schema()

    def start(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Start a run: check it and put it into the line."""
        run = self._jobs.submit(TrainConfig.from_dict(body))
        return {"name": run.name, "state": "queued"}

    def sweep(self, body: dict[str, Any] = Document) -> list[dict[str, Any]]:
        """Start a run for every combination of values: ``{"run": {…}, "values": {"network.rank": [8, 16]}}``."""
        run, values = body.get("run", {}), body.get("values", {})
        if not isinstance(run, dict) or not isinstance(values, dict):
            raise InputError("body: expected an object with run and values.", field="body")
        if not all(isinstance(each, list) and each for each in values.values()):
            raise InputError("values: expected a list of values for each setting.", field="values")
        return [_state(each) for each in self._jobs.sweep(TrainConfig.from_dict(run), values)]

    def preflight(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Measure the memory (bytes) and time (seconds) that a run would take; nothing is kept."""
        return self._jobs.measure(TrainConfig.from_dict({"name": "unnamed", **body})).to_dict()

    def runs(self, offset: int = Offset, limit: int = Limit, short: bool = False) -> Response:
        """Manifests of ``limit`` runs behind the first ``offset``, newest first; the header X-Total-Count has the count
        of all. With ``short`` without their files, samples and data sets. One that is damaged has this as its state.
        """
        runs = [run.snapshot() for run in self._jobs.list(offset, limit)]
        left_out = _LONG if short else ()
        shown = [{key: value for key, value in run.items() if key not in left_out} for run in runs]
        return StrictJson(shown, headers={"X-Total-Count": str(len(self._jobs.run_names()))})

    def run(self, name: str) -> Response:
        """A run's manifest."""
        return StrictJson(self._jobs.shown(name).snapshot())

    def log(self, name: str, after: int = 0, limit: int = LogLimit) -> Response:
        """A run's log entries behind step ``after``, about ``limit`` of them: go on behind the last one's step."""
        return StrictJson(self._jobs.shown(name).entries(after, limit))

    def stop(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Stop a run: ``{"save": false}`` discards what was learned since the last file, ``{"after_epoch": true}``."""
        if not flag_in(body, "save", True):
            return _state(self._jobs.stop(name, StopRequest.DISCARD))
        after_epoch = flag_in(body, "after_epoch", False)
        return _state(self._jobs.stop(name, StopRequest.AFTER_EPOCH if after_epoch else StopRequest.STOP))

    def pause(self, name: str) -> dict[str, Any]:
        """Pause a run: its memory is freed, nothing is lost."""
        return _state(self._jobs.stop(name, StopRequest.PAUSE))

    def resume(self, name: str) -> dict[str, Any]:
        """Go on with a paused, stopped or failed run."""
        return _state(self._jobs.resume(name))

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Load the checkpoint that a run was trained on; a run that waits for it goes on."""
        return _state(self._jobs.load_checkpoint(name))

    def grid(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Draw the epoch × weight grid of a run's finished files; how far it is stands in the run's manifest."""
        return {"name": name, "grid": self._jobs.grids.draw(name, **body).manifest["grid"]}

    def grid_document(self, name: str) -> dict[str, Any]:
        """The document of a run's grid: columns, weights, prompts, seeds, cells with their pictures, numbers."""
        return self._jobs.grids.document(name)

    def stop_grid(self, name: str) -> dict[str, Any]:
        """Stop drawing; finished pictures are kept."""
        return {"name": name, "grid": self._jobs.grids.stop(name).manifest["grid"]}

    def blocks(self, name: str, file: str = "") -> dict[str, Any]:
        """How strong the run's files are in each block, and what is known of one file's blocks; the last by default."""
        return self._jobs.blocks.report(name, file)

    def analyze_blocks(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Draw a file's pictures with each block alone and without each, and measure what that changes."""
        return {"name": name, "blocks": self._jobs.blocks.analyze(name, body).manifest["blocks"]}

    def tune_blocks(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Learn one weight a block on the pictures that the run kept aside, or on others."""
        return {"name": name, "blocks": self._jobs.blocks.tune(name, body).manifest["blocks"]}

    def stop_blocks(self, name: str) -> dict[str, Any]:
        """Stop looking at a run's blocks; finished pictures are kept."""
        return {"name": name, "blocks": self._jobs.blocks.stop(name).manifest["blocks"]}

    def front(self, name: str) -> dict[str, Any]:
        """Let a waiting run be the next."""
        return _state(self._jobs.move(name, 1))

    def move(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Give a waiting run another place in line: ``{"position": 2}``, 1 for the next."""
        return _state(self._jobs.move(name, whole_in(body, "position", 1)))

    def check_dataset(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Report every picture's bucket and crop, and what is wrong with those that cannot be used."""
        if "data" in body:  # a whole run's section, or only what is in it
            require_known(body, ["data"])
        data = TrainConfig.from_dict({"name": "check", "data": body.get("data", body)}).data
        return self._jobs.dataset(data, decode=True).report()

    def loras(self) -> list[dict[str, Any]]:
        """The LoRA files: their names below the LoRA folder, without the extension, and their sizes in bytes."""
        return self._jobs.loras.entries()

    def lora_info(self, name: str = "") -> dict[str, Any]:
        """A file's metadata, kinds, ranks, blocks and norms."""
        return self._jobs.tools.info(name)

    def bake(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write weights and block weights into a new file; answers the work, whose state can be asked for."""
        return self._jobs.tools.start("bake", body).to_dict()

    def merge(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write the weighted sum of LoRAs into a new file: ``{"files": ["a: 0.7", "b: 0.5: OUTALL"], "rank": 0}``."""
        return self._jobs.tools.start("merge", body).to_dict()

    def resize(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write a LoRA at a smaller rank into a new file."""
        return self._jobs.tools.start("resize", body).to_dict()

    def file_work(self, work: str) -> dict[str, Any]:
        """How far a bake, merge or resize is; ``result`` has the new file's path and SHA-256 when it is done."""
        return self._jobs.tools.get(work).to_dict()

    def stop_file_work(self, work: str) -> dict[str, Any]:
        """Stop it; nothing half-made is left."""
        return self._jobs.tools.stop(work).to_dict()


def _state(run: Run) -> dict[str, Any]:
    return {"name": run.name, "state": run.state}
