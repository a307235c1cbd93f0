"""Put into a scratch WebUI by the host tests: runs a test's code inside its process. Never part of the extension."""

import contextlib
import io
import traceback

from fastapi import Body
from modules import script_callbacks


def _mount(_demo, app):
    @app.post("/probe")
    def probe(code: str = Body(embed=True)):
        scope = {}
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "probe", "exec"), scope)
        except Exception:  # noqa: BLE001
            return {"error": traceback.format_exc(), "printed": printed.getvalue()}
        return {"result": scope.get("result"), "printed": printed.getvalue()}


script_callbacks.on_app_started(_mount)
