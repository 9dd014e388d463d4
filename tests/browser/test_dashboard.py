"""The dashboard in a headless Chromium, on the real run-control process with a scripted worker's history."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Locator, Page, Response, expect

from tests.browser.site import Site, signed_in
from tests.browser.story import CLIENTS
from tests.trainer.kit import TOKENS

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

MOST_BYTES = 300_000
PLACES = (
    "/", "/alerts", "/storage", "/audits", "/runs/{run}", "/runs/{run}/clients", "/runs/{run}/samples",
    "/runs/{run}/alerts", "/runs/{run}/details",
)  # fmt: skip
CHARTS = (
    "Reward", "Evaluation reward", "Mixture weight", "Mixture weight: medical", "KL to the reference", "Entropy",
    "Clip fractions", "Response length", "Staleness", "Step time", "Tokens per second",
)  # fmt: skip

expect.set_options(timeout=60_000)


@pytest.fixture
async def client(context: BrowserContext, control: Site) -> AsyncIterator[Page]:
    """With the token of the client ``detail``."""
    async with signed_in(context, control, "client") as page:
        yield page


async def go(page: Page, place: str) -> None:
    await page.evaluate("place => { location.hash = place }", place)


async def table_of(page: Page, title: str) -> list[int]:
    """Steps in the table of a chart, oldest first."""
    button = page.get_by_role("button", name=f"{title} as a table", exact=True)
    if await button.get_attribute("aria-pressed") != "true":
        await button.click()
    rows = page.get_by_role("region", name=f"Values of {title}", exact=True).locator("tbody th")
    await expect(rows.first).to_be_visible()
    return [int(text) for text in reversed(await rows.all_inner_texts())]


async def test_the_token_leaves_the_address_and_runs_are_listed(viewer: Page, run: str) -> None:
    await expect(viewer.get_by_role("link", name=run)).to_be_visible()
    assert "token" not in viewer.url
    await viewer.get_by_role("link", name=run).click()
    await expect(viewer.get_by_role("heading", name=run, level=1)).to_be_focused()


async def test_every_metric_with_values_has_a_chart(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    for title in CHARTS:
        figure = viewer.get_by_role("figure", name=title, exact=True)
        await figure.scroll_into_view_if_needed()
        await expect(figure.locator("canvas")).to_be_visible()
        drawn = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
        assert await figure.locator("canvas").evaluate(drawn), title
    for client in ("fused", *CLIENTS):
        await expect(viewer.get_by_role("figure", name="Reward", exact=True)).to_contain_text(client)


async def test_a_step_shows_as_it_happens(viewer: Page, control: Site) -> None:
    run = await control.begin("live", 20, 3)
    await go(viewer, f"/runs/{run}")
    figure = viewer.get_by_role("figure", name="Reward", exact=True)
    await expect(figure).to_contain_text("step 3")
    await control.report(run, 4, 4)
    await expect(figure).to_contain_text("step 4")
    await expect(viewer.get_by_role("region", name="State of the run")).to_contain_text("4 of 20")
    await expect(viewer).to_have_title(f"20 % running · {run} · MoR")


async def test_a_restart_leaves_no_gap(viewer: Page, control: Site) -> None:
    run = await control.begin("restarted", 40, 3)
    await go(viewer, f"/runs/{run}")
    await expect(viewer.get_by_text("live", exact=True)).to_be_visible()
    [serving] = control.processes.running("mor-trainer")
    serving.send_signal(signal.SIGKILL)
    await expect(viewer.get_by_role("alert")).to_contain_text("Not live")
    await control.report(run, 4, 9, arrives=False)
    control.processes.serve()
    await control.report(run, 10, 12)
    await expect(viewer.get_by_text("live", exact=True)).to_be_visible()
    await expect(viewer.get_by_role("figure", name="Reward", exact=True)).to_contain_text("step 12")
    assert await table_of(viewer, "Reward") == list(range(1, 13))


async def test_steps_that_a_resumed_run_lost_leave_the_charts(viewer: Page, control: Site) -> None:
    run = await control.begin("resumed", 20, 6)
    await go(viewer, f"/runs/{run}")
    await expect(viewer.get_by_role("figure", name="Reward", exact=True)).to_contain_text("step 6")
    await control.resume(run, 4)
    await control.report(run, 5, 5)
    await expect(viewer.get_by_role("figure", name="Reward", exact=True)).to_contain_text("step 5")
    assert await table_of(viewer, "Reward") == [1, 2, 3, 4, 5]


async def test_a_chart_is_read_and_zoomed_by_keys(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    plot = viewer.get_by_role("figure", name="Reward", exact=True).get_by_role("slider")
    await expect(plot.locator("canvas")).to_be_visible()
    await plot.focus()
    await viewer.keyboard.press("Home")
    await expect(plot).to_have_attribute("aria-valuenow", "1")
    await viewer.keyboard.press("ArrowRight")
    await expect(plot).to_have_attribute("aria-valuenow", "2")
    assert (await plot.get_attribute("aria-valuetext") or "").startswith("step 2: fused ")
    other = viewer.get_by_role("figure", name="Reward spread")
    await expect(other, "the cursor is one for all charts").to_contain_text("step 2")
    await viewer.keyboard.press("+")
    await expect(viewer.get_by_role("button", name="Show everything")).to_be_visible()
    await viewer.keyboard.press("Escape")
    await expect(viewer.get_by_role("button", name="Show everything")).to_be_hidden()


async def test_a_sample_shows_picture_scores_and_advantage(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}/samples")
    group = viewer.get_by_role("article")
    await expect(group.get_by_role("img")).to_have_js_property("naturalWidth", 192)
    best = group.get_by_role("row").nth(1)
    await expect(best).to_contain_text("a bar chart with four bars, blue")
    for figure in ("1.2", "+1.1", "4", "0.1"):
        await expect(best.get_by_role("cell", name=figure, exact=False).first).to_be_visible()
    await expect(group).not_to_contain_text("five calls in a row failed")  # what a client's error says is not theirs
    await expect(group).to_contain_text("<img src=x onerror=document.title='broken'>")
    assert "broken" not in await viewer.title(), "what a model wrote is text"
    await viewer.get_by_label("Domain").select_option("medical")
    await expect(viewer.get_by_role("list", name="Sample groups")).not_to_contain_text("detail")


@pytest.mark.parametrize("scope", ["viewer", "admin"])
async def test_clients_show_weights_failures_and_their_latest_answer(
    context: BrowserContext, control: Site, run: str, scope: str
) -> None:
    async with signed_in(context, control, scope) as page:
        await go(page, f"/runs/{run}/clients")
        row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="medical"))
        await expect(row).to_contain_text("timeout 1")
        await expect(row).to_contain_text("circuit open")
        reason = expect(row).to_contain_text if scope == "admin" else expect(row).not_to_contain_text
        await reason("five calls in a row failed")
        if scope == "admin":
            await go(page, f"/runs/{run}/samples")
            await expect(page.get_by_role("article")).to_contain_text("medical: five calls in a row failed")


async def test_clients_show_their_state_at_the_router(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}/clients")

    def row(name: str) -> Locator:
        return viewer.get_by_role("row").filter(has=viewer.get_by_role("rowheader", name=name))

    await expect(row("medical")).to_contain_text("paused: moves house")
    for figure in ("active", "closed", "0.3 s", "86 % of 120 pairs, error 4 %"):
        await expect(row("detail").get_by_role("cell", name=figure, exact=True)).to_be_visible()
    await expect(row("newcomer")).to_contain_text("took no part")


async def test_an_admin_pauses_resumes_and_stops(admin: Page, control: Site) -> None:
    run = await control.begin("steered", 20, 1)
    await go(admin, f"/runs/{run}")
    await admin.get_by_role("button", name="Pause").click()
    await expect(admin.get_by_text("pauses after this step")).to_be_visible()
    await admin.get_by_role("button", name="Resume").click()
    await expect(admin.get_by_role("button", name="Pause")).to_be_visible()
    await admin.get_by_role("button", name="Stop").click()
    await admin.get_by_role("dialog").get_by_role("button", name="Stop").click()
    await expect(admin.get_by_text("stops after this step")).to_be_visible()
    async with control.http() as http:
        assert (await http.get(f"/v1/runs/{run}")).json()["desired"] == "stop"


async def test_an_alert_appears_and_is_acknowledged(admin: Page, control: Site) -> None:
    run = await control.begin("alerted", 20, 2)
    await go(admin, f"/runs/{run}/alerts")
    await expect(admin.get_by_text("Nothing needs attention.")).to_be_visible()
    await control.workers[run].report("alert", 2, {"name": "non_finite", "reason": "1 update was left out"})
    await expect(admin.get_by_role("navigation", name="Parts of the run")).to_contain_text("1 open")
    await admin.get_by_label("Note for colleagues").fill("smaller lr")
    await admin.get_by_role("button", name="Acknowledge non finite").click()
    await expect(admin.get_by_text("Nothing needs attention.")).to_be_visible()
    await admin.get_by_label("only open ones").uncheck()
    await expect(admin.get_by_text("smaller lr")).to_be_visible()


async def test_a_lost_connection_is_shown_and_retried(viewer: Page, run: str) -> None:
    await expect(viewer.get_by_role("link", name=run)).to_be_visible()
    await viewer.route("**/v1/**", lambda route: route.abort())
    await expect(viewer.get_by_role("alert")).to_contain_text("run control does not answer")
    await expect(viewer.get_by_role("link", name=run), "what was read stays").to_be_visible()
    await viewer.unroute("**/v1/**")
    await expect(viewer.get_by_role("alert")).to_have_count(0)


async def test_a_run_without_evaluation_warns_on_its_page(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    warning = viewer.get_by_text("Warning: the run has no evaluation")
    await expect(warning).to_be_visible()
    await warning.click()
    await expect(viewer.get_by_text("Give evaluation_prompts")).to_be_visible()


async def test_a_viewer_has_no_controls(viewer: Page, run: str) -> None:
    await go(viewer, f"/runs/{run}")
    await expect(viewer.get_by_text("live", exact=True)).to_be_visible()
    await expect(viewer.get_by_role("button", name="Pause")).to_have_count(0)


async def test_a_client_sees_its_own_figures_only(client: Page, run: str) -> None:
    await go(client, f"/runs/{run}")
    figure = client.get_by_role("figure", name="Mixture weight", exact=True)
    await expect(figure).to_contain_text("detail")
    for tab in ("", "/clients", "/samples"):
        await go(client, f"/runs/{run}{tab}")
        await expect(client.locator(".tabs [aria-current]")).to_have_text(tab[1:] or "charts")
        await expect(client.locator("main [role=status]", has_text="…")).to_have_count(0)
        for other in ("fused", "chart", "medical"):
            named = client.locator(".legend button, th").filter(has_text=re.compile(f"^\\s*{other}"))
            await expect(named, f"{other} at {tab}").to_have_count(0)


async def test_a_wrong_token_is_refused_and_requested_again(context: BrowserContext, control: Site, run: str) -> None:
    page = await context.new_page()
    await page.goto(control.address("token=wrong"))
    await expect(page.get_by_role("alert")).to_contain_text("unknown bearer token")
    await page.get_by_label("Bearer token").fill(TOKENS["viewer"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name=run)).to_be_visible()


async def test_an_unknown_run_and_an_unknown_page_are_reported(viewer: Page) -> None:
    await go(viewer, "/runs/nope")
    await expect(viewer.get_by_role("alert")).to_contain_text("no run 'nope'")
    await go(viewer, "/nowhere")
    await expect(viewer.get_by_role("heading", name="No such page")).to_be_visible()


async def test_an_address_that_changes_while_the_page_loads_is_followed(viewer: Page) -> None:
    await viewer.add_init_script("""
        const listen = window.addEventListener;
        window.addEventListener = function (kind, ...rest) {
            if (kind === "hashchange") history.replaceState(null, "", "#/nowhere");
            return listen.call(this, kind, ...rest);
        };
    """)
    await viewer.reload()
    await expect(viewer.get_by_role("heading", name="No such page")).to_be_visible()


async def test_the_page_is_small_and_calls_run_control_only(context: BrowserContext, control: Site, run: str) -> None:
    replies: list[Response] = []

    def keep(reply: Response) -> None:
        replies.append(reply)

    context.on("response", keep)
    async with signed_in(context, control, "viewer") as page:
        await expect(page.get_by_role("link", name=run)).to_be_visible()
        assert all(reply.url.startswith(control.processes.address) for reply in replies)
        assets = [reply for reply in replies if "/v1/" not in reply.url]
        assert {reply.url.rpartition("/")[2] for reply in assets} >= {"app.js", "style.css"}
        sizes = [len(await reply.body()) for reply in assets]
        assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_no_serious_problem(chromium: Browser, control: Site, run: str, theme: str) -> None:
    context = await chromium.new_context(color_scheme="dark" if theme == "dark" else "light", bypass_csp=True)
    async with signed_in(context, control, "admin") as page:
        for place in PLACES:
            await go(page, place.format(run=run))
            await expect(page.locator("main h1")).to_be_visible()
            await expect(page.locator("main [role=status]", has_text="…")).to_have_count(0)
            found = await Axe().run(page)
            serious = [
                problem for problem in found.response["violations"] if problem["impact"] in ("serious", "critical")
            ]
            problems = [(p["id"], [node["html"][:200] for node in p["nodes"]][:3]) for p in serious]
            assert not serious, (place, problems)
    await context.close()


async def test_a_phone_shows_everything_without_scrolling_sideways(chromium: Browser, control: Site, run: str) -> None:
    context = await chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    async with signed_in(context, control, "admin") as page:
        for place in PLACES:
            await go(page, place.format(run=run))
            await expect(page.locator("main h1")).to_be_visible()
            await expect(page.locator("main [role=status]", has_text="…")).to_have_count(0)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 360, place
    await context.close()
