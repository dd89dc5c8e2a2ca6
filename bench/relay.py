"""A relay on loopback that forwards everything after a delay: a server at a distance."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Hand on what comes, each piece `delay` seconds after it came; a pause does not hold up the pieces behind it."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(due - loop.time())
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()

    sender = asyncio.create_task(send())
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            pieces.put_nowait((loop.time() + delay, piece))
    pieces.put_nowait((loop.time() + delay, b""))
    with contextlib.suppress(ConnectionError):
        await sender


@contextlib.contextmanager
def relay(port: int, target: int, delay: float) -> Iterator[None]:
    """Listen on a port of loopback and relay to another; `delay` is in seconds, for each direction."""
    loop = asyncio.new_event_loop()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        # Cancelled when the relay ends.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(carry(reader, far_writer, delay), carry(far_reader, writer, delay))

    async def hang_up() -> None:
        """Connections that are kept open end as well."""
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(connect, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(hang_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
