"""Run as a script: Flower's SuperLink with a guard in front.

Flower 1.41 serves three interfaces on one port: Fleet (the sites; authenticated by node keys), Runtime (the processes
of the coordinator's own machine) and Control (submit, stop, register). The open-source Control interface authenticates
nobody: whoever reaches the port could submit code to every site. The guard lets Fleet requests through from anywhere,
Runtime requests from this machine only, and Control requests from there only with the secret of the home folder.
"""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

HEADER: Final = "x-consilium-control"
"""Of a Control request: holds the secret."""
FILE_VARIABLE: Final = "CONSILIUM_CONTROL_SECRET_FILE"
"""Of the environment of this script: names the file that holds the secret."""
_LOOPBACK: Final = ("127.0.0.1", "::1")


class Guard:
    """ASGI middleware: who may ask what of the SuperLink; see the module's text."""

    def __init__(self, app: Callable[..., Any], secret: bytes) -> None:
        self._app: Final = app
        self._secret: Final = secret

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or answer it with 403."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._allows(scope)):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"not allowed from here\n"})

    def _allows(self, scope: dict[str, Any]) -> bool:
        path: str = scope["path"]
        if path.startswith("/v1/fleet/"):
            return True
        client = scope.get("client")
        if client is None or client[0] not in _LOOPBACK:
            return False
        if path.startswith("/v1/runtime/"):
            return True
        given = dict(scope["headers"]).get(HEADER.encode(), b"")
        return path.startswith("/v1/control/") and hmac.compare_digest(given, self._secret)


def _serve() -> None:
    """Run ``flower-superlink`` in this process with the guard as its outermost layer."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    secret = Path(os.environ[FILE_VARIABLE]).read_bytes().strip()
    extensions.get_middleware = lambda: (Middleware(Guard, secret=secret),)
    flower_superlink()


if __name__ == "__main__":
    _serve()
