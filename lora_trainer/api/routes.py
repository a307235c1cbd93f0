"""The addresses of our REST interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI

from lora_trainer.api.guard import Door, guard
from lora_trainer.api.handlers import Api
from lora_trainer.api.http import Route, StrictJson, fields_of, require_nothing
from lora_trainer.config.schema import schema_of
from lora_trainer.config.train import json_schema
from lora_trainer.jobs.requests import DOCUMENTS, AnalysisDocument, TuningDocument
from lora_trainer.jobs.service import Jobs
from lora_trainer.validation.grid.options import GridOptions

PREFIX = "/lora-train/v1"


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
        ("POST", "/sweep", api.sweep, fields_of(run=run_schema, values=_VALUES)),
        ("GET", "/runs", api.runs, None),
        ("GET", "/runs/{name}", api.run, None),
        ("GET", "/runs/{name}/log", api.log, None),
        ("POST", "/runs/{name}/stop", api.stop, _STOP),
        ("POST", "/runs/{name}/pause", api.pause, fields_of()),
        ("POST", "/runs/{name}/resume", api.resume, fields_of()),
        ("POST", "/runs/{name}/load-checkpoint", api.load_checkpoint, fields_of()),
        ("POST", "/runs/{name}/grid", api.grid, schema_of(GridOptions)),
        ("GET", "/runs/{name}/grid", api.grid_document, None),
        ("POST", "/runs/{name}/grid/stop", api.stop_grid, fields_of()),
        ("GET", "/runs/{name}/blocks", api.blocks, None),
        ("POST", "/runs/{name}/blocks/analyze", api.analyze_blocks, schema_of(AnalysisDocument)),
        ("POST", "/runs/{name}/blocks/tune", api.tune_blocks, schema_of(TuningDocument)),
        ("POST", "/runs/{name}/blocks/stop", api.stop_blocks, fields_of()),
        ("POST", "/runs/{name}/front", api.front, fields_of()),
        ("POST", "/runs/{name}/move", api.move, _MOVE),
        ("POST", "/dataset/check", api.check_dataset, run_schema["properties"]["data"]),
        ("GET", "/loras", api.loras, None),
        ("GET", "/loras/info", api.lora_info, None),
        ("POST", "/loras/bake", api.bake, schema_of(DOCUMENTS["bake"])),
        ("POST", "/loras/merge", api.merge, schema_of(DOCUMENTS["merge"])),
        ("POST", "/loras/resize", api.resize, schema_of(DOCUMENTS["resize"])),
        ("GET", "/loras/work/{work}", api.file_work, None),
        ("POST", "/loras/work/{work}/stop", api.stop_file_work, fields_of()),
    ]
    for method, path, handler, schema in routes:
        extra = {"requestBody": {"content": {"application/json": {"schema": schema}}}} if schema else None
        checks = [Depends(require_nothing(schema))] if schema and "title" not in schema else []
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


_VALUES = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}


_STOP = fields_of(
    save={"type": "boolean", "default": True},
    after_epoch={"type": "boolean", "default": False},
)


_MOVE = fields_of(position={"type": "integer", "minimum": 1, "default": 1})
