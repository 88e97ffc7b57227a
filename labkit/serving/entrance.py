"""What answers while the model loads, and when it could not be loaded: alive from the first second, ready when warm."""

import threading
from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from labkit.errors import LabError
from labkit.serving.contract import Refusal

TOLD_SECONDS = 1.0  # for which a failure can still be read at /health before the process ends


class Entrance:
    """An ASGI app that hands everything to the app that `load` makes, as soon as it is made.

    Until then /livez answers 200, /health 503 with the reason, and everything else 503 with Retry-After. `ended` is
    called after a failure, which is then in `failure`; `ready` as soon as the app answers.
    """

    def __init__(self, load: Callable[[], FastAPI], ready: Callable[[FastAPI], None], ended: Callable[[], None]):
        self._load, self._ready, self._ended = load, ready, ended
        self._app: FastAPI | None = None
        self.failure: LabError | None = None

    def begin(self) -> None:
        """Load in a thread of its own, which does not keep the process alive."""
        threading.Thread(target=self._run, name="labkit-load", daemon=True).start()

    def _run(self) -> None:
        try:
            self._app = self._load()
            self._ready(self._app)
        except LabError as error:
            self.failure = error
        except BaseException as error:  # whatever it is, the learner gets its kind and never a traceback
            what = f"the model could not be loaded: {type(error).__name__}: {error}"
            self.failure = LabError(what, "free memory, or give another --model")
        if self.failure is not None:
            threading.Timer(TOLD_SECONDS, self._ended).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._not_ready(scope["path"])(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._app is not None:
            self._app.state.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _not_ready(self, path: str) -> JSONResponse:
        reason = f"failed: {self.failure.what}" if self.failure else "loading"
        if path == "/livez":
            return JSONResponse({"status": "alive"})
        if path == "/health":
            return JSONResponse({"status": reason}, 503)
        refusal = Refusal("model_loading", f"the model is not ready: {reason}")
        return JSONResponse(refusal.body(), refusal.status_code, refusal.headers)
