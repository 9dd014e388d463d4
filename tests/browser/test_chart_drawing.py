"""Charts show scales, ticks and gate versions, on paper and on a phone."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.site import Site, signed_in
from tests.browser.test_dashboard import go

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

CUT = """
figures => figures.filter(figure => {
    const canvas = figure.querySelector('canvas');
    const {width, height} = canvas;
    const context = canvas.getContext('2d');
    const drawn = (...part) => context.getImageData(...part).data.some((value, i) => i % 4 === 3 && value);
    return drawn(0, 0, 1, height) || drawn(width - 1, 0, 1, height) || drawn(0, height - 1, width, 1);
}).map(figure => figure.querySelector('h3').textContent)
"""
"""Charts with a drawn pixel at the left, right or lower edge of the canvas: a label is cut there."""

NOTE_PRINT = """
addEventListener("afterprint", () => {
    const drawn = canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean);
    window.printed = {
        drawn: [...document.querySelectorAll("figure canvas")].filter(drawn).length,
        background: getComputedStyle(document.body).backgroundColor,
    };
});
"""
"""Notes what was printed. Before the dashboard's own script, so that it is called first."""


@pytest.mark.parametrize("width", [360, 1280])
async def test_no_label_of_an_axis_is_cut(chromium: Browser, control: Site, run: str, width: int) -> None:
    context = await chromium.new_context(viewport={"width": width, "height": 20_000})
    async with signed_in(context, control, "viewer") as page:
        await go(page, f"/runs/{run}")
        figures = page.get_by_role("figure")
        await expect(figures.last.locator("canvas")).to_be_visible()
        if width < 700:
            await page.get_by_text("Chart controls").click()
        for axis, scale in (("step", "linear"), ("time", "linear"), ("step", "log")):
            await page.get_by_label("Axis").select_option(axis)
            await page.get_by_label("Scale").select_option(scale)
            await page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert await figures.evaluate_all(CUT) == [], (axis, scale)
    await context.close()


async def test_a_logarithmic_scale_is_for_values_that_are_not_negative(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    await viewer.get_by_label("Scale").select_option("log")
    kl = viewer.get_by_role("figure", name="KL to the reference", exact=True)
    await kl.scroll_into_view_if_needed()
    await expect(kl).to_contain_text("log axis")
    reward = viewer.get_by_role("figure", name="Reward", exact=True)
    await expect(reward).to_contain_text("Linear, because some values are below 0.")


async def test_the_bound_of_a_guard_stands_in_its_chart(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    await expect(viewer.get_by_role("figure", name="KL to the reference", exact=True)).to_contain_text(
        "guard pauses at 1"
    )
    await expect(viewer.get_by_role("figure", name="Gradient norm", exact=True)).not_to_contain_text("guard")


async def test_a_gate_version_stands_beside_rewards(viewer: Page, control: Site) -> None:
    run = await control.begin("regated", 120, 3)
    await control.report(run, 49, 51)
    await go(viewer, f"/runs/{run}")
    reward = viewer.get_by_role("figure", name="Reward", exact=True)
    await expect(reward).to_contain_text("step 51 · gate version 2")
    await expect(reward).to_contain_text("rewards on both sides are not comparable")
    await reward.get_by_role("slider").focus()
    await viewer.keyboard.press("Home")
    await expect(reward).to_contain_text("step 1 · gate version 1")
    await viewer.get_by_role("button", name="Reward as a table", exact=True).click()
    rows = viewer.get_by_role("region", name="Values of Reward", exact=True).get_by_role("row")
    await expect(rows.nth(1).get_by_role("cell").nth(-2)).to_have_text("2")
    await expect(viewer.get_by_role("figure", name="Entropy", exact=True)).not_to_contain_text("gate version")


async def test_every_chart_is_printed_in_light_colours(chromium: Browser, control: Site, run: str) -> None:
    context = await chromium.new_context(viewport={"width": 1280, "height": 700}, color_scheme="dark")
    await context.add_init_script(NOTE_PRINT)
    async with signed_in(context, control, "viewer") as page:
        await go(page, f"/runs/{run}")
        figures = page.get_by_role("figure")
        await expect(figures.first.locator("canvas")).to_be_visible()
        charts = await figures.count()
        assert await page.locator("figure canvas").count() < charts, "some are not drawn before they are near"
        await page.pdf(format="A4", print_background=True)
        assert await page.evaluate("window.printed") == {"drawn": charts, "background": "rgb(255, 255, 255)"}
        await expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    await context.close()


@pytest.mark.parametrize("scope", ["viewer", "admin"])
async def test_the_first_chart_is_on_the_first_screen_of_a_phone(
    chromium: Browser, control: Site, run: str, scope: str
) -> None:
    context = await chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    async with signed_in(context, control, scope) as page:
        await go(page, f"/runs/{run}")
        plot = page.get_by_role("figure").first.locator("canvas")
        await expect(plot).to_be_visible()
        box = await plot.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 740
        await page.get_by_text("More figures").click()
        await expect(page.get_by_text("Last change")).to_be_visible()
    await context.close()
