"""The WebUI's own restarts, told from what they look like: an Interrupt, and the end of the program.

*Reload UI* builds the page anew within the process, and interrupts whatever is going on first (shared_state.py:70);
a run goes on through it. *Apply and restart UI* ends the process on the spot (restart.py:22), without what Python does
at its end; a run is saved before, and goes on when the program is there again. A page that stays open over either asks
once a second, and must not hinder the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modules import initialize_util, restart, shared
from starlette.middleware import Middleware

from lora_trainer.hosts.a1111.rebuild import reload

if TYPE_CHECKING:
    from lora_trainer.jobs.service import Jobs

log = logging.getLogger(__name__)


def watch(jobs: Callable[[], Jobs]) -> None:
    """See the WebUI's restarts before they have an effect; to be called before its page is built.

    Args:
        jobs: what is going on.
    """
    _before(shared.state, "request_restart", reload.begin)
    _before(restart, "stop_program", lambda: jobs().keep_current())
    _before(initialize_util, "setup_middleware", open_to_middleware)


def open_to_middleware(app: Any) -> None:
    """Let middleware be added to an app that has answered somebody already.

    The WebUI adds its own after it has begun to listen (webui.py:105, api.py:148), and ends with "Cannot add middleware
    after an application has started" when a page that stayed open over a restart has asked for anything by then.

    Args:
        app: the page's, each time that it is made.
    """

    def add(middleware_class: type, **options: Any) -> None:
        app.user_middleware.insert(0, Middleware(middleware_class, **options))
        app.middleware_stack = app.build_middleware_stack()

    app.add_middleware = add


def _before(owner: object, name: str, action: Callable[..., object]) -> None:
    """Do ``action`` before each call of the owner's function, with its arguments; once, however often asked for."""
    original = getattr(owner, name)
    if hasattr(original, "lora_train"):
        return

    def call(*args: Any) -> None:
        try:
            action(*args)
        except Exception:
            log.exception("Before %s", name)  # the WebUI's button works in any case
        original(*args)

    call.lora_train = True  # type: ignore[attr-defined]
    setattr(owner, name, call)
