"""Pictures of the dashboard for the documentation: ``make screenshots`` writes them to ``docs/images``."""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, Page

from tests.browser.site import Site, browser, installed, signed_in, site
from tests.conftest import Valkey

OUT = Path(__file__).parents[2] / "docs" / "images"
_SHOTS = (
    ("dashboard-charts-light", "/runs/{run}", "light", (1280, 1150)),
    ("dashboard-charts-dark", "/runs/{run}", "dark", (1280, 1150)),
    ("dashboard-samples-light", "/runs/{run}/samples", "light", (1280, 900)),
    ("dashboard-clients-dark", "/runs/{run}/clients", "dark", (1280, 620)),
    ("dashboard-phone-dark", "/runs/{run}", "dark", (390, 844)),
)


async def main() -> None:
    """
    Raises:
        SystemExit: no browser to take pictures with.
    """
    executable = installed()
    if executable is None:
        sys.exit("no Chromium on this machine; `apt-get install chromium` brings one")
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        try:
            async with site(Path(folder), server.url) as control, browser(executable) as opened:
                await _shoot(control, opened)
        finally:
            server.stop()


async def _shoot(control: Site, opened: Browser) -> None:
    run = await control.begin("three-domains", 100, 80)
    reason = "the clients that answered held 0.31 of the gate weight, 0.5 is wanted"
    await control.workers[run].tell("alert", 78, {"name": "group_dropped", "reason": reason, "group_id": "6f1c"})
    for name, place, theme, (width, height) in _SHOTS:
        context = await opened.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if theme == "dark" else "light"
        )
        async with signed_in(context, control, "admin") as page:
            await _settled(page, place.format(run=run))
            _save(OUT / f"{name}.png", await page.screenshot())
        await context.close()


async def _settled(page: Page, place: str) -> None:
    await page.evaluate("place => { location.hash = place }", place)
    await page.get_by_text("live", exact=True).wait_for()
    await page.locator("main canvas, main article img, main meter").first.wait_for()
    if place.endswith("/clients"):
        await page.get_by_role("cell", name="closed").first.wait_for()  # what the router knows
    await page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def _save(path: Path, content: bytes) -> None:
    """A palette is enough, and keeps the repository small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(kmeans=3).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    asyncio.run(main())
