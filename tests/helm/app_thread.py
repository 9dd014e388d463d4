"""A web application on a loopback port, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading

from aiohttp import web


class AppThread:
    """Thread that serves ``app`` until it is stopped."""

    def __init__(self, app: web.Application) -> None:
        self.loop = asyncio.new_event_loop()
        self.address = ""
        """Host and port."""
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(app, started), daemon=True)
        self._thread.start()
        assert started.wait(20), "the application did not come up"

    def _run(self, app: web.Application, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        runner = web.AppRunner(app, shutdown_timeout=1)
        self.loop.run_until_complete(runner.setup())
        self.loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        self.loop.run_forever()
        self.loop.run_until_complete(runner.cleanup())
        self.loop.close()

    def stop(self) -> None:
        """Stop serving."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=20)
