"""A link with a token signs in where no token is in use, and asks elsewhere."""

from __future__ import annotations

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.site import Site
from tests.trainer.kit import TOKENS

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


async def follow(page: Page, token: str) -> None:
    """Follow a link to another place of the page that is open."""
    await page.evaluate("hash => { location.hash = hash }", f"token={token}")


async def stored(page: Page) -> str | None:
    found: str | None = await page.evaluate("sessionStorage.getItem('mor-token')")
    return found


async def everywhere(page: Page) -> str:
    """Return all that the page keeps beyond the session: address, history state, local storage, cookies."""
    kept: str = await page.evaluate(
        "JSON.stringify([location.href, history.state, {...localStorage}, document.cookie, document.referrer])"
    )
    return kept


async def test_a_link_does_not_replace_the_token_in_use_without_a_question(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    await follow(viewer, TOKENS["admin"])
    question = viewer.get_by_role("dialog", name="Another token")
    await expect(question).to_contain_text("admin (admin)")
    await expect(question).to_contain_text("viewer (viewer)")
    assert await stored(viewer) == TOKENS["viewer"]
    assert TOKENS["admin"] not in await everywhere(viewer)
    await question.get_by_role("button", name="Keep my token").click()
    await expect(question).to_have_count(0)
    await viewer.reload()
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    assert await stored(viewer) == TOKENS["viewer"]


async def test_a_link_is_followed_after_consent(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    await follow(viewer, TOKENS["admin"])
    await viewer.get_by_role("dialog").get_by_role("button", name="Switch to admin (admin)").click()
    await expect(viewer.get_by_role("banner")).to_contain_text("admin (admin)")
    assert await stored(viewer) == TOKENS["admin"]


async def test_escape_keeps_the_token_and_the_same_token_is_no_question(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    await follow(viewer, TOKENS["admin"])
    await expect(viewer.get_by_role("dialog")).to_be_visible()
    await viewer.keyboard.press("Escape")
    await expect(viewer.get_by_role("dialog")).to_have_count(0)
    async with viewer.expect_response("**/v1/about"):
        await follow(viewer, TOKENS["viewer"])
    await expect(viewer.get_by_role("dialog")).to_have_count(0)
    assert await stored(viewer) == TOKENS["viewer"]


async def test_a_token_that_is_not_valid_is_never_kept(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    for token in ("unknown", "", "%00", "two words", "\N{BLACK HEART SUIT}", TOKENS["enrolment"]):
        await follow(viewer, token)
        await expect(viewer.get_by_role("alert")).to_contain_text("The token of the link was not taken")
        assert await stored(viewer) == TOKENS["viewer"]
        assert "token=" not in viewer.url
        await viewer.evaluate("location.hash = '/alerts'")
        await expect(viewer.get_by_role("alert"), token).to_have_count(0)


async def test_a_link_replaces_a_token_that_is_refused(context: BrowserContext, control: Site) -> None:
    await context.add_init_script("if (!sessionStorage.length) sessionStorage.setItem('mor-token', 'revoked')")
    page = await context.new_page()
    await page.goto(control.address(f"token={TOKENS['viewer']}"))
    await expect(page.get_by_role("banner")).to_contain_text("viewer (viewer)")


async def test_the_history_holds_no_token_and_forgetting_removes_it(viewer: Page, control: Site) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    assert TOKENS["viewer"] not in await everywhere(viewer)
    await viewer.go_back()
    assert TOKENS["viewer"] not in viewer.url
    await viewer.goto(control.address())
    await viewer.get_by_role("button", name="Forget token").click()
    await expect(viewer.get_by_label("Bearer token")).to_be_visible()
    assert await stored(viewer) is None


async def test_no_message_of_another_window_changes_the_page(viewer: Page) -> None:
    await expect(viewer.get_by_text("viewer (viewer)")).to_be_visible()
    await viewer.evaluate("""() => { for (const data of ["token", {token: "x"}, {type: "setToken", token: "x"}])
        window.postMessage(data, "*"); }""")
    await viewer.wait_for_timeout(100)
    assert await stored(viewer) == TOKENS["viewer"]
    assert await viewer.evaluate("window.opener") is None
