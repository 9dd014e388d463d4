"""Comparison of runs in the dashboard, and what people do with many runs: sort, tag, note, save."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.browser.site import Site, signed_in
from tests.browser.test_dashboard import go
from tests.trainer.kit import bearer

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


@pytest.fixture(scope="session")
async def other(control: Site) -> str:
    """A shorter run beside the usual one."""
    return await control.begin("shorter", 60, 6)


async def test_chosen_runs_are_compared(viewer: Page, run: str, other: str) -> None:
    for name in (run, other):
        await viewer.get_by_label(f"Compare {name}").check()
    await viewer.get_by_role("link", name="Compare 2 runs").click()
    await expect(viewer.get_by_role("heading", name="Comparison of 2 runs")).to_be_focused()
    for title in ("Reward", "KL to the reference", "Clip fractions: low"):
        legend = viewer.get_by_role("figure", name=title, exact=True).get_by_role("list")
        await expect(legend).to_contain_text(run)
        await expect(legend).to_contain_text(other)
    await viewer.get_by_label("Axis").select_option("elapsed")
    await expect(viewer.get_by_role("figure", name="Reward", exact=True)).to_contain_text(" h")
    table = viewer.get_by_role("region", name="Differences of the specifications")
    row = table.get_by_role("row").filter(has=viewer.get_by_role("rowheader", name="steps", exact=True))
    await expect(row.get_by_role("cell")).to_have_text(["120", "60"])
    await expect(table.get_by_role("rowheader", name="group_size")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_comparison_is_accessible_and_fits_a_phone(
    chromium: Browser, control: Site, run: str, other: str, theme: str
) -> None:
    context = await chromium.new_context(
        viewport={"width": 360, "height": 740}, color_scheme="dark" if theme == "dark" else "light", bypass_csp=True
    )
    async with signed_in(context, control, "viewer") as page:
        await go(page, f"/compare/{run},{other}")
        await expect(page.get_by_role("figure", name="Reward", exact=True)).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        found = await Axe().run(page)
        serious = [one for one in found.response["violations"] if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in serious]
    await context.close()


async def test_columns_sort_the_runs(viewer: Page, run: str, other: str) -> None:
    table = viewer.get_by_role("region", name="Table of runs")
    names = table.locator("tbody th")
    head = table.get_by_role("columnheader", name="Step")
    await expect(names.filter(has_text=run)).to_be_visible()

    async def order() -> list[str]:
        shown = await names.all_inner_texts()
        return [name for name in shown if name in (run, other)]

    await head.get_by_role("button").click()
    await expect(head).to_have_attribute("aria-sort", "descending")
    assert await order() == [run, other]
    await head.get_by_role("button").click()
    await expect(head).to_have_attribute("aria-sort", "ascending")
    assert await order() == [other, run]
    await head.get_by_role("button").click()
    assert await head.get_attribute("aria-sort") is None


async def test_an_admin_tags_a_run_and_people_find_it(context: BrowserContext, control: Site, run: str) -> None:
    async with signed_in(context, control, "admin") as page:
        tagged = await control.begin("tagged", 20, 1)
        await go(page, f"/runs/{tagged}")
        await page.get_by_role("button", name="Add tags or a note").click()
        await page.get_by_label("Tags, with spaces between").fill("baseline august")
        await page.get_by_role("textbox", name="Note").fill("<b>the</b> first with new anchors")
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.get_by_role("button", name="Edit tags and note")).to_be_visible()
        await page.get_by_role("button", name="Edit tags and note").click()
        await page.get_by_label("Tags, with spaces between").fill("baseline two,words!")
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.get_by_role("alert")).to_contain_text("a tag is up to 40 letters")
        await page.get_by_role("button", name="Cancel").click()
        await go(page, "/")
        await page.get_by_role("combobox", name="Tag").select_option("august")
        table = page.get_by_role("region", name="Table of runs")
        await expect(table.locator("tbody th")).to_have_text([tagged])
        await expect(table).to_contain_text("<b>the</b> first with new anchors")
        await page.get_by_role("combobox", name="Tag").select_option("")
        await page.get_by_label("Name or note").fill("NEW anchors")
        await expect(table.locator("tbody th")).to_have_text([tagged])


async def test_a_whole_run_is_saved_as_csv(viewer: Page, run: str, tmp_path: Path) -> None:
    await go(viewer, f"/runs/{run}")
    async with viewer.expect_download() as started:
        await viewer.get_by_role("button", name="Save the run as CSV").click()
    file = tmp_path / "run.csv"
    await (await started.value).save_as(file)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [int(row["step"]) for row in rows] == list(range(1, 25))
    assert rows[9]["evaluation.reward"]
    assert rows[0]["domains.medical.weights.chart"]


async def test_a_finished_run_is_not_live(viewer: Page, control: Site) -> None:
    run = await control.begin("over", 2, 2)
    await go(viewer, f"/runs/{run}")
    await expect(viewer.get_by_text("live", exact=True)).to_be_visible()
    async with control.http() as http:
        beat = {"attempt": 1, "state": "finished", "final": "/models/aligned"}
        reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
        reply.raise_for_status()
    await expect(viewer.locator(".state")).to_have_text("finished")
    await expect(viewer.get_by_text("live", exact=True)).to_have_count(0)


async def test_times_have_a_zone(viewer: Page, run: str) -> None:
    zone = re.compile(r"\d\d:\d\d:\d\d.* (UTC|GMT[+-]?\d*|[A-Z]{2,5})$")
    await expect(
        viewer.get_by_role("row").filter(has_text=run).get_by_role("cell").filter(has_text=zone)
    ).to_be_visible()
    await go(viewer, f"/runs/{run}/details")
    await expect(viewer.get_by_role("definition").filter(has_text=zone)).to_be_visible()


async def test_one_prompt_is_followed_over_the_steps(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}/samples")
    await viewer.get_by_role("button", name="This prompt over the steps").click()
    table = viewer.get_by_role("region", name="Samples of prompt chart-0")
    await expect(table.locator("tbody th")).to_have_text(["24", "16", "8"])
    await expect(table).to_contain_text("a bar chart with four bars, blue")
    await viewer.get_by_role("button", name="All samples").click()
    await expect(viewer.get_by_role("list", name="Sample groups")).to_be_visible()
