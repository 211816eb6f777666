"""What a running server tells a client over its socket, while something runs."""

import asyncio
import contextlib
import json
import struct
import threading
from dataclasses import dataclass, field

import aiohttp

TEXT = 3  # the host's kind of message for text on a node


@dataclass
class Heard:
    """texts: (node, text) shown on nodes. progress: (node, done, of) of their bars."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def take(self, message):
        if message.type is aiohttp.WSMsgType.BINARY:
            kind, length = struct.unpack(">II", message.data[:8])
            if kind == TEXT:
                self.texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
        elif message.type is aiohttp.WSMsgType.TEXT:
            said = json.loads(message.data)
            if said["type"] == "progress":
                data = said["data"]
                self.progress.append((data["node"], data["value"], data["max"]))


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
