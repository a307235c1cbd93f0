"""REST, under ``/lora-train/v1`` on the host's own app, as closed as its page (:mod:`lora_trainer.guard`)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from lora_trainer import __version__
from lora_trainer.block_jobs import TuningDocument, analysis_schema
from lora_trainer.config import TrainConfig, json_schema
from lora_trainer.control import AFTER_EPOCH
from lora_trainer.errors import ConfigErrors, InputError, LoraTrainError, NotFound
from lora_trainer.file_tools import DOCUMENTS
from lora_trainer.guard import Door, guard
from lora_trainer.jobs import Jobs
from lora_trainer.plain_json import json_text, parse_json
from lora_trainer.runs import Run
from lora_trainer.schema import MAX_DOCUMENT_BYTES, require_known, schema_of

PREFIX = "/lora-train/v1"
RUNS_A_PAGE = 100
ENTRIES_A_PAGE = 10_000
_LONG = ("files", "samples", "dataset")
Offset = Query(0, ge=0, le=2**31)
Limit = Query(RUNS_A_PAGE, ge=1, le=1000)
LogLimit = Query(ENTRIES_A_PAGE, ge=1, le=ENTRIES_A_PAGE)


async def read_json(request: Request) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object.

    Raises:
        InputError: too large, not JSON, or not an object.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise InputError("body: larger than 1 MB.", field="body")
    if not raw.strip():
        return {}
    try:
        value = parse_json(bytes(raw))
    except ValueError as error:
        raise InputError("body: not valid JSON ({error}).", field="body", error=error) from error
    if not isinstance(value, dict):
        raise InputError("body: expected a JSON object.", field="body")
    return value


class StrictJson(JSONResponse):
    """An answer that every program can read: ``null`` for NaN, whatever a damaged file holds."""

    def render(self, content: Any) -> bytes:
        """The answer's bytes."""
        return json_text(content, compact=True).encode()


class Route(APIRoute):
    """Answers our errors as JSON: 404 no such thing, 422 bad input, 500 the work failed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with our errors caught."""
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await original(request)
            except LoraTrainError as error:
                status = 404 if isinstance(error, NotFound) else 422 if isinstance(error, InputError) else 500
                return StrictJson(error_body(error), status_code=status)

        return handle


Document = Depends(read_json)


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
        if short:
            runs = [{key: value for key, value in run.items() if key not in _LONG} for run in runs]
        return StrictJson(runs, headers={"X-Total-Count": str(len(self._jobs.runs.names()))})

    def run(self, name: str) -> Response:
        """A run's manifest."""
        return StrictJson(self._jobs.shown(name).snapshot())

    def log(self, name: str, after: int = 0, limit: int = LogLimit) -> Response:
        """A run's log entries behind step ``after``, about ``limit`` of them: go on behind the last one's step."""
        return StrictJson(self._jobs.shown(name).entries(after, limit))

    def stop(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Stop a run: ``{"save": false}`` discards what was learned since the last file, ``{"after_epoch": true}``."""
        if not _flag(body, "save", True):
            return _state(self._jobs.stop(name, "discard"))
        return _state(self._jobs.stop(name, AFTER_EPOCH if _flag(body, "after_epoch", False) else "stop"))

    def pause(self, name: str) -> dict[str, Any]:
        """Pause a run: its memory is freed, nothing is lost."""
        return _state(self._jobs.stop(name, "pause"))

    def resume(self, name: str) -> dict[str, Any]:
        """Go on with a paused, stopped or failed run."""
        return _state(self._jobs.resume(name))

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Load the checkpoint that a run was trained on; a run that waits for it goes on."""
        return _state(self._jobs.load_checkpoint(name))

    def grid(self, name: str, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Draw the epoch × weight grid of a run's finished files; how far it is stands in the run's manifest."""
        wishes = {
            "weights": _list_of(body, "weights", (int, float)),
            "prompts": _list_of(body, "prompts", (str,)),
            "epochs": _text(body, "epochs", "all"),
            "seeds": _list_of(body, "seeds", (int,)),
            "together": _whole(body, "together", 4),
            "numbers": _flag(body, "numbers", True),
            "clip": _text(body, "clip", ""),
        }
        return {"name": name, "grid": self._jobs.grid(name, **wishes).manifest["grid"]}

    def grid_document(self, name: str) -> dict[str, Any]:
        """The document of a run's grid: columns, weights, prompts, seeds, cells with their pictures, numbers."""
        return self._jobs.grid_document(name)

    def stop_grid(self, name: str) -> dict[str, Any]:
        """Stop drawing; finished pictures are kept."""
        return {"name": name, "grid": self._jobs.stop_grid(name).manifest["grid"]}

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
        return _state(self._jobs.move(name, _whole(body, "position", 1)))

    def check_dataset(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Report every picture's bucket and crop, and what is wrong with those that cannot be used."""
        if "data" in body:  # a whole run's section, or only what is in it
            require_known(body, ["data"])
        data = TrainConfig.from_dict({"name": "check", "data": body.get("data", body)}).data
        return self._jobs.dataset(data, decode=True).report()

    def loras(self) -> list[dict[str, Any]]:
        """The LoRA files: their names below the LoRA folder, without the extension, and their sizes in bytes."""
        return self._jobs.files.loras.entries()

    def lora_info(self, name: str = "") -> dict[str, Any]:
        """A file's metadata, kinds, ranks, blocks and norms."""
        return self._jobs.files.info(name)

    def bake(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write weights and block weights into a new file; answers the work, whose state can be asked for."""
        return self._jobs.files.start("bake", body).to_dict()

    def merge(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write the weighted sum of LoRAs into a new file: ``{"files": ["a: 0.7", "b: 0.5: OUTALL"], "rank": 0}``."""
        return self._jobs.files.start("merge", body).to_dict()

    def resize(self, body: dict[str, Any] = Document) -> dict[str, Any]:
        """Write a LoRA at a smaller rank into a new file."""
        return self._jobs.files.start("resize", body).to_dict()

    def file_work(self, work: str) -> dict[str, Any]:
        """How far a bake, merge or resize is; ``result`` has the new file's path and SHA-256 when it is done."""
        return self._jobs.files.chores.get(work).to_dict()

    def stop_file_work(self, work: str) -> dict[str, Any]:
        """Stop it; nothing half-made is left."""
        return self._jobs.files.chores.stop(work).to_dict()


def mount(app: FastAPI, jobs: Jobs, door: Door = Door()) -> None:  # noqa: B008 - it cannot be changed
    """Add the routes to ``app``.

    Args:
        app: the host's app.
        jobs: what is served.
        door: how far the host's own interface is open.
    """
    api = Api(jobs)
    guarded = Depends(guard(door))
    run_schema = json_schema()
    routes: list[tuple[str, str, Callable[..., Any], dict[str, Any] | None]] = [
        ("GET", "/health", api.health, None),
        ("GET", "/schema", api.schema, None),
        ("POST", "/runs", api.start, run_schema),
        ("POST", "/preflight", api.preflight, run_schema),
        ("POST", "/sweep", api.sweep, _fields(run=run_schema, values=_VALUES)),
        ("GET", "/runs", api.runs, None),
        ("GET", "/runs/{name}", api.run, None),
        ("GET", "/runs/{name}/log", api.log, None),
        ("POST", "/runs/{name}/stop", api.stop, _STOP),
        ("POST", "/runs/{name}/pause", api.pause, _fields()),
        ("POST", "/runs/{name}/resume", api.resume, _fields()),
        ("POST", "/runs/{name}/load-checkpoint", api.load_checkpoint, _fields()),
        ("POST", "/runs/{name}/grid", api.grid, _GRID),
        ("GET", "/runs/{name}/grid", api.grid_document, None),
        ("POST", "/runs/{name}/grid/stop", api.stop_grid, _fields()),
        ("GET", "/runs/{name}/blocks", api.blocks, None),
        ("POST", "/runs/{name}/blocks/analyze", api.analyze_blocks, analysis_schema()),
        ("POST", "/runs/{name}/blocks/tune", api.tune_blocks, schema_of(TuningDocument)),
        ("POST", "/runs/{name}/blocks/stop", api.stop_blocks, _fields()),
        ("POST", "/runs/{name}/front", api.front, _fields()),
        ("POST", "/runs/{name}/move", api.move, _MOVE),
        ("POST", "/dataset/check", api.check_dataset, run_schema["properties"]["data"]),
        ("GET", "/loras", api.loras, None),
        ("GET", "/loras/info", api.lora_info, None),
        ("POST", "/loras/bake", api.bake, schema_of(DOCUMENTS["bake"])),
        ("POST", "/loras/merge", api.merge, schema_of(DOCUMENTS["merge"])),
        ("POST", "/loras/resize", api.resize, schema_of(DOCUMENTS["resize"])),
        ("GET", "/loras/work/{work}", api.file_work, None),
        ("POST", "/loras/work/{work}/stop", api.stop_file_work, _fields()),
    ]
    for method, path, handler, schema in routes:
        extra = {"requestBody": {"content": {"application/json": {"schema": schema}}}} if schema else None
        checks = [Depends(_nothing_else(schema))] if schema and "title" not in schema else []
        app.router.add_api_route(  # a router of our own would make each of them twice
            PREFIX + path,
            handler,
            methods=[method],
            openapi_extra=extra,
            dependencies=[guarded, *checks],
            tags=["LoRA Train"],
            response_class=StrictJson,
            route_class_override=Route,
        )


def _fields(**properties: Any) -> dict[str, Any]:
    """The schema of a body that no document class reads; those have titles."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _nothing_else(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Whatever a program asks for is done or refused: a misspelt key would be neither."""

    def check(body: dict[str, Any] = Document) -> None:
        require_known(body, schema["properties"])

    return check


_VALUES = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}
_STOP = _fields(
    save={"type": "boolean", "default": True},
    after_epoch={"type": "boolean", "default": False},
)
_MOVE = _fields(position={"type": "integer", "minimum": 1, "default": 1})
_GRID = _fields(
    weights={"type": "array", "items": {"type": "number", "minimum": -2, "maximum": 2}},
    prompts={"type": "array", "items": {"type": "string"}},
    epochs={"type": "string", "default": "all"},
    seeds={"type": "array", "items": {"type": "integer", "minimum": 0}},
    together={"type": "integer", "minimum": 1, "default": 4},
    numbers={"type": "boolean", "default": True},
    clip={"type": "string", "default": ""},
)


def health_report(jobs: Jobs) -> dict[str, Any]:
    """What the server can do now."""
    try:
        info = jobs.host.check(TrainConfig(name="health"))
        checkpoint: dict[str, Any] = info.to_dict()
        problem = ""
    except LoraTrainError as error:
        checkpoint, problem = {}, str(error)
    current = jobs.training.current()
    return {
        "status": "ok",
        "version": __version__,
        "host": jobs.host.name,
        "checkpoint": checkpoint,
        "problem": problem,
        "running": current.run.name if current else None,
        "queue": [task.run.name for task in jobs.training.waiting()],
    }


def _flag(body: dict[str, Any], key: str, default: bool) -> bool:
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise InputError("{key}: expected true or false.", field=key, key=key)
    return value


def _text(body: dict[str, Any], key: str, default: str) -> str:
    value = body.get(key, default)
    if not isinstance(value, str):
        raise InputError("{key}: expected a text.", field=key, key=key)
    return value


def _whole(body: dict[str, Any], key: str, default: int) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError("{key}: expected a whole number.", field=key, key=key)
    return value


def _list_of(body: dict[str, Any], key: str, kinds: tuple[type, ...]) -> list[Any]:
    value = body.get(key, [])
    if not isinstance(value, list) or any(not isinstance(v, kinds) or isinstance(v, bool) for v in value):
        wanted = "texts" if str in kinds else "numbers"
        raise InputError("{key}: expected a list of {wanted}.", field=key, key=key, wanted=wanted)
    return value


def _state(run: Run) -> dict[str, Any]:
    return {"name": run.name, "state": run.state}


def error_body(error: LoraTrainError) -> dict[str, Any]:
    """An error in FastAPI's form, with the field's dotted path beside it."""
    errors: list[Any] = error.errors if isinstance(error, ConfigErrors) else [error]
    return {
        "detail": [
            {"loc": ["body", *filter(None, e.field.split("."))], "field": e.field, "msg": str(e), "type": "value_error"}
            for e in errors
        ]
    }
