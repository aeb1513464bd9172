"""Prevents visitors from making requests to other servers through this one."""

import re
from collections.abc import Awaitable, Callable

from starlette.responses import PlainTextResponse

_ELSEWHERE = re.compile(r"/(file|proxy)=\s*[a-z]+:/", re.IGNORECASE)


class OwnAddressesOnly:
    """ASGI middleware that refuses Gradio's two routes that fetch an address for a visitor."""

    def __init__(self, app: Callable[..., Awaitable]):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answers 403 to such a request, and passes on all others."""
        if scope["type"] == "http" and _ELSEWHERE.search(scope["path"]):
            refusal = PlainTextResponse("Only files of this app are served", status_code=403)
            return await refusal(scope, receive, send)
        await self.app(scope, receive, send)
