"""A prompt on a running server, followed while it runs: which node, how far, and its previews."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from ..devtools.server import Server
from ..devtools.workflow import Prompt

ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEW_IMAGE = 1  # the kind of a binary message: 4 bytes kind, 4 bytes format, then the image
LARGEST_MESSAGE = 64 * 2**20
SILENCE = 60.0  # seconds without a word after which the server is asked whether it still lives


@dataclass(frozen=True)
class Moment:
    """Something that happened. title: of the node at work. A node has done `done` of `of` steps; 0 of 0 when
    it begins. preview: the image that it showed, as JPEG or PNG."""

    title: str
    done: int = 0
    of: int = 0
    preview: bytes | None = None


def run_live(server: Server, prompt: Prompt, tell: Callable[[Moment], None]) -> dict[str, Any]:
    """Queue a prompt, tell what happens, and return its history entry.

    Raises ServerError, with the node's own words, if it is refused or fails.
    """
    return asyncio.run(_run(server, prompt, tell))


async def _run(server: Server, prompt: Prompt, tell: Callable[[Moment], None]) -> dict[str, Any]:
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=LARGEST_MESSAGE) as socket,
    ):
        prompt_id = await asyncio.to_thread(server.post, prompt, client)
        title = ""
        while True:
            try:
                message = await socket.receive(timeout=SILENCE)
            except asyncio.TimeoutError:
                server.check_alive()
                continue
            if message.type is aiohttp.WSMsgType.BINARY:
                if image := _preview(message.data):
                    tell(Moment(title, preview=image))
            elif message.type is aiohttp.WSMsgType.TEXT:
                kind, data = _told(message.data)
                if data.get("prompt_id") != prompt_id:
                    continue
                if kind in ENDINGS:
                    break
                title = _tell_of(kind, data, prompt, tell) or title
            else:
                break  # closed: the history, or the dead server, says why
    return await asyncio.to_thread(server.wait, prompt_id)


def _tell_of(kind: str, data: dict[str, Any], prompt: Prompt, tell: Callable[[Moment], None]) -> str | None:
    """Pass on what one message says; the title of the node it is about."""
    entry = prompt.get(str(data.get("node")))
    if entry is None or kind not in ("executing", "progress"):
        return None
    title = entry["_meta"]["title"]
    tell(Moment(title, *((data["value"], data["max"]) if kind == "progress" else ())))
    return title


def _told(text: str) -> tuple[str, dict[str, Any]]:
    told = json.loads(text)
    return told["type"], told.get("data") or {}


def _preview(message: bytes) -> bytes | None:
    kind = int.from_bytes(message[:4], "big")
    return message[8:] if kind == PREVIEW_IMAGE else None
