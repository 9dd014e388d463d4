"""The page ``/docs`` in a browser: rendered from the service's own files, within its content security policy."""

from __future__ import annotations

import pytest
from playwright.async_api import BrowserContext, Request, expect

from tests.browser.site import Site

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


async def test_the_page_shows_the_routes_and_loads_nothing_from_elsewhere(
    context: BrowserContext, control: Site
) -> None:
    address = control.processes.address
    requested: list[str] = []
    complaints: list[str] = []

    def keep(request: Request) -> None:
        requested.append(request.url)

    page = await context.new_page()
    page.on("request", keep)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(
        f"{address}/docs?url=https://elsewhere.example/openapi.json&configUrl=https://elsewhere.example/c.json"
    )
    operation = page.locator(".opblock", has_text="/v1/about").first
    await expect(operation).to_be_visible(timeout=60_000)
    await operation.click()
    await page.get_by_role("button", name="Try it out").click()
    await page.get_by_role("button", name="Execute").click()
    await expect(page.locator(".live-responses-table").get_by_text("401").first).to_be_visible()
    outside = [url for url in requested if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert not outside
    assert [text for text in complaints if "401" not in text] == []


async def test_another_site_cannot_frame_a_page(context: BrowserContext, control: Site) -> None:
    page = await context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if "frame" in message.text.lower() else None)
    for place in ("/docs", "/", "/openapi.json"):
        address = f"{control.processes.address}{place}"
        await page.set_content(f"<iframe src='{address}' width=400 height=300></iframe>")
        frame = next(frame for frame in page.frames if frame is not page.main_frame)
        await expect(page.locator("iframe")).to_be_visible()
        await page.wait_for_timeout(300)
        assert not frame.url.startswith(address), f"{place} is framed"
    assert refused
