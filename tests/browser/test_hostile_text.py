"""Text of clients, models, prompts and errors stays text, in every field that the dashboard shows."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser import story
from tests.browser.site import Site
from tests.browser.test_dashboard import PLACES, go

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

ATTACKS = (
    "<img src=x onerror=window.hit=1>",
    "<script>window.hit=1</script>",
    "\"'><svg onload=window.hit=1>",
    "javascript:window.hit=1",
    "data:text/html,<script>parent.hit=1</script>",
    "[click](javascript:window.hit=1)",
    "{{constructor.constructor('window.hit=1')()}}",
    "__proto__",
    "constructor",
    "#token=stolen",
    "//elsewhere.example/",
    "\u202ereversed",
)
_NO_TEXT = {"id", "group_id", "status", "kind", "stage", "client", "images", "thumbnails"}
"""Fields whose values the events' types or the page's own look-up decide."""


def poisoned(value: Any, text: str, key: str = "") -> Any:
    """Replace every free text in an event, keys that name a domain included."""
    if isinstance(value, dict):
        rename = key == "domains"
        return {
            text if rename and number == 0 else name: poisoned(inner, text, name) if name not in _NO_TEXT else inner
            for number, (name, inner) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [poisoned(inner, text, key) for inner in value]
    return text if isinstance(value, str) else value


async def test_no_field_of_a_run_becomes_markup_or_a_link(admin: Page, control: Site) -> None:
    run = await control.begin("hostile", 40, 2)
    worker = control.workers[run]
    await admin.evaluate("window.hit = 0; window.stayed = true")
    last = 2 + len(ATTACKS)
    for step, text in enumerate(ATTACKS, start=3):
        await worker.report("samples", step, poisoned(story.samples(step), text))
        await worker.report("evaluation", step, poisoned(story.evaluation(step), text))
        await worker.report("checkpoint", step, {"path": text, "seconds": 1.0})
        await worker.report("alert", step, {"name": "non_finite", "reason": text})
        await worker.report("step", step, poisoned(story.step_data(step), text))
    await control.report(run, last + 1, last + 1)
    for place in PLACES:
        await go(admin, place.format(run=run))
        await expect(admin.locator("main h1")).to_be_visible()
        await expect(admin.locator("main [role=status]", has_text="…")).to_have_count(0)
        await check(admin, place)
    await go(admin, f"/runs/{run}/samples")
    for attack in ATTACKS[:7]:
        await admin.get_by_role("list", name="Sample groups").get_by_text(attack, exact=True).first.click()
        await expect(admin.get_by_role("article").get_by_text(attack, exact=True).first).to_be_visible()
        await check(admin, attack)


async def check(page: Page, told: str) -> None:
    found = await page.evaluate("""() => ({
        hit: window.hit, stayed: window.stayed, polluted: Object.keys(Object.prototype).length,
        links: [...document.querySelectorAll("a, area, form, iframe, object, embed, base, link")]
            .map((one) => one.href ?? one.action ?? one.src ?? one.data)
            .filter((url) => url && new URL(url, document.baseURI).origin !== location.origin && url !== "data:,"),
        foreign: document.querySelectorAll("main :is(script, svg, iframe, object, [onerror], [onload])").length,
    })""")
    assert found == {"hit": 0, "stayed": True, "polluted": 0, "links": [], "foreign": 0}, told


async def test_no_address_leaves_the_page_or_becomes_markup(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    await viewer.evaluate("window.hit = 0; window.stayed = true")
    for text in ATTACKS:
        for place in (text, f"/runs/{text}", f"/runs/{text}/samples"):
            await go(viewer, place)
            await expect(viewer.locator("main h1")).to_be_visible()
            await check(viewer, place)
