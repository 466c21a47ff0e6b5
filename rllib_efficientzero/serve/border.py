"""Checks requests before the application: their token, and bodies that are too large, too slow or compressed."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/healthz")
OPEN_PREFIX = "/page/"
"""Paths that need no token: the page itself has no secrets."""


class Border:
    """ASGI middleware that lets through only requests whose body is complete, small enough and uncompressed JSON.

    Args:
        app: the application behind it.
        max_body_bytes: a larger body is answered by 413, without reading it if its Content-Length says so.
        body_timeout_s: a body that has not arrived by then is answered by 408.
        token: requests without it (`Authorization: Bearer ...`) are answered by 401; None: none is needed.
    """

    def __init__(
        self, app: Application, *, max_body_bytes: int, body_timeout_s: float, token: str | None = None
    ) -> None:
        self._app = app
        self._max_body_bytes, self._body_timeout_s, self._token = max_body_bytes, body_timeout_s, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _refuse(send, *refused)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._body_timeout_s)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self._body_timeout_s:g} s")
            return
        if body is None:
            return  # The client has disconnected.
        if len(body) > self._max_body_bytes:
            await _refuse(send, 413, self._too_large())
            return
        await self._app(scope, _once(body, receive), send)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Returns status and reason if a request can be refused without its body, else None."""
        # Behind a prefix, as Ray Serve may put the application, a path begins with it.
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        is_open = path in OPEN_PATHS or path.startswith(OPEN_PREFIX)
        if self._token is not None and not is_open:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                return 401, "a bearer token is needed"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:
            return 400, "Content-Length is not a number"
        if int(length) > self._max_body_bytes:
            return 413, self._too_large()
        if scope["method"] == "POST":
            if headers.get(b"content-encoding", b"identity") != b"identity":
                return 415, "bodies must not be compressed"
            # Pages of other sites cannot send this type without being allowed to.
            if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
                return 415, "bodies are application/json"
        return None

    def _too_large(self) -> str:
        return f"a body may have {self._max_body_bytes} bytes"

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or as much of it as shows that it is too large; None if the connection ended."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_body_bytes or not message.get("more_body", False):
                return b"".join(chunks)


def _once(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the application the body that was already read, then goes on with `receive`."""
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return receive_again


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
