"""Pictures of the dashboard for the documentation: ``make screenshots`` takes them of the run of the last ``make demo``
and writes them to ``docs/images``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, Page
from three_domains import session, stack
from three_domains.stack import Stack

from tests.browser.site import browser, installed

OUT = Path(__file__).parents[2] / "docs" / "images"
_SHOTS = (
    ("dashboard-charts-light", "/runs/{run}", "light", (1280, 1150)),
    ("dashboard-charts-dark", "/runs/{run}", "dark", (1280, 1150)),
    ("dashboard-samples-light", "/runs/{run}/samples", "light", (1280, 900)),
    ("dashboard-clients-dark", "/runs/{run}/clients", "dark", (1280, 620)),
    ("dashboard-phone-dark", "/runs/{run}", "dark", (390, 844)),
)


def main() -> None:
    """
    Raises:
        SystemExit: no browser to take pictures with, or no finished run to take them of.
    """
    parser = argparse.ArgumentParser(description="Pictures of the dashboard for docs/images.")
    parser.add_argument("--state", type=Path, required=True, help="folder of a demonstration that has ended")
    options = parser.parse_args()
    executable = installed()
    if executable is None:
        sys.exit("no Chromium on this machine; `apt-get install chromium` brings one")
    if not (options.state / "report.json").exists():
        sys.exit(f"no run has finished in {options.state}; `make demo` first")
    running = stack.prepare(options.state, options.state / "base")
    try:
        running.start()
        list(running.wait_until_ready())
        session.enrol(running)
        session.fit_gate(running, options.state / "data/server/anchors.jsonl")
        asyncio.run(_shoot(executable, running, _finished_run(running)))
    finally:
        running.stop()


def _finished_run(running: Stack) -> str:
    """Return the newest finished run."""
    with running.http("control") as http:
        newest_first = http.get("/v1/runs").raise_for_status().json()
    return str(next(run["id"] for run in newest_first if run["state"] == "finished"))


async def _shoot(executable: str, running: Stack, run: str) -> None:
    async with browser(executable) as opened:
        for name, place, theme, size in _SHOTS:
            _save(OUT / f"{name}.png", await _picture(opened, running, place.format(run=run), theme, size))


async def _picture(opened: Browser, running: Stack, place: str, theme: str, size: tuple[int, int]) -> bytes:
    width, height = size
    context = await opened.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if theme == "dark" else "light"
    )
    try:
        page = await context.new_page()
        await page.goto(running.dashboard)
        await _settled(page, place)
        return await page.screenshot()
    finally:
        await context.close()


async def _settled(page: Page, place: str) -> None:
    await page.get_by_role("heading", name="Runs").wait_for()
    await page.evaluate("place => { location.hash = place }", place)
    await page.locator("main canvas, main article img, main meter").first.wait_for()
    if place.endswith("/clients"):
        await page.get_by_role("cell", name="closed").first.wait_for()  # from the router
    await page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _save(path: Path, content: bytes) -> None:
    """Save with a palette, which is enough and keeps the repository small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(kmeans=3).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
