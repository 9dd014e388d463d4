from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, BrowserContext, Page

from tests.browser.site import Site, browser, installed, signed_in, site
from tests.conftest import Valkey


@pytest.fixture(scope="session")
def executable() -> str:
    found = installed()
    if found is None:
        pytest.skip(
            "no Chromium on this machine, so the dashboard is not opened; `apt-get install chromium` brings one"
        )
    return found


@pytest.fixture(scope="session")
async def control(executable: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Run control with its own queue server, because other tests empty theirs and count its entries."""
    folder = tmp_path_factory.mktemp("site")
    server = Valkey(tmp_path_factory.mktemp("queue"))
    try:
        async with site(folder, server.url) as opened:
            yield opened
    finally:
        server.stop()


@pytest.fixture(scope="session")
async def run(control: Site) -> str:
    """A run with some steps."""
    return await control.begin("looked-at", 120, 24)


@pytest.fixture(scope="session")
async def chromium(executable: str) -> AsyncIterator[Browser]:
    async with browser(executable) as opened:
        yield opened


@pytest.fixture
async def context(chromium: Browser) -> AsyncIterator[BrowserContext]:
    context = await chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context
    await context.close()


@pytest.fixture
async def viewer(context: BrowserContext, control: Site) -> AsyncIterator[Page]:
    async with signed_in(context, control, "viewer") as page:
        yield page


@pytest.fixture
async def admin(context: BrowserContext, control: Site) -> AsyncIterator[Page]:
    async with signed_in(context, control, "admin") as page:
        yield page
