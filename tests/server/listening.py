"""What a running server tells a client over its socket, while something runs."""

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass, field

import aiohttp

PROGRESS = "concept_sliders.progress"  # how far a node of the pack is, in words
LATE_WARNING = "concept_sliders.warning"  # what comes out about it after its report


@dataclass
class Heard:
    """texts: (node, text) shown on nodes. warnings: (node, text) of late ones. progress: (node, done, of) of bars."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def take(self, message):
        if message.type is aiohttp.WSMsgType.TEXT:
            said = json.loads(message.data)
            if said["type"] == "progress":
                data = said["data"]
                self.progress.append((data["node"], data["value"], data["max"]))
            elif said["type"] == PROGRESS:
                self.texts.append((said["data"]["node"], said["data"]["text"]))
            elif said["type"] == LATE_WARNING:
                self.warnings.append((said["data"]["node"], said["data"]["text"]))


@contextlib.contextmanager
def listening(server, client_id):
    """What the server tells this client within the block: `Heard`."""
    heard, ready, done = Heard(), threading.Event(), threading.Event()

    async def listen():
        url = f"{server.url}/ws?clientId={client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            ready.set()
            while not done.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    heard.take(await socket.receive(timeout=0.2))

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    assert ready.wait(30)
    try:
        yield heard
    finally:
        done.set()
        thread.join(30)
