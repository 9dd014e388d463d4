"""The dashboard's page of audits: a person labels groups by keys, and sees nothing about clients."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from axe_playwright_python.async_playwright import Axe
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, ModelRef, TextPart
from mor_router.objectives.objective_store import ObjectiveStore
from mor_router.trust.audit_types import AuditScores, LiveAudit
from mor_router.trust.live_audits import AuditStore
from mor_router.trust.person_tallies import PersonTallies
from playwright.async_api import Browser, Page, expect

from tests.browser.site import Site, signed_in
from tests.router.planted import jsonl, picture, rows
from tests.trainer.kit import bearer

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

OBJECTIVE = "judged"


def waiting(number: int) -> LiveAudit:
    """A group with a picture, whose first response of the pair is ``right``."""
    content = picture("chart", number)
    line = AuditScores(
        client="medical", model=ModelRef(name="m", version="1"), raw=(1.0, 2.0), standardised=None, weight=0, slope=0
    )
    parts = (ImagePart.of(sha256(content)), TextPart(text=f"Question {number}: what is the tallest bar?"))
    return LiveAudit(
        at=time.time() - 60 + number,
        gate=1,
        policy="run:3",
        probability=0.02,
        support=1,
        rewards=(1.0, 2.0),
        clients=(line,),
        embedding=np.zeros(4, np.float32).tobytes(),
        messages=(Message(role="user", content=parts),),
        responses=("wrong <b>bar</b>", "right"),
        images={sha256(content): content},
        pair=(1, 0),
    )


@pytest.fixture
async def store(control: Site) -> AsyncIterator[AuditStore]:
    async with httpx.AsyncClient(
        base_url=control.processes.environment["MOR_ROUTER_URL"], headers=bearer("admin")
    ) as http:
        (await http.post("/v1/objectives", json={"name": OBJECTIVE, "text": "Be right."})).raise_for_status()
        store = AuditStore(control.redis, ObjectiveStore(control.redis))
        for number in range(3):
            await store.add(OBJECTIVE, waiting(number))
        yield store
        (await http.delete(f"/v1/objectives/{OBJECTIVE}")).raise_for_status()


@pytest.fixture
async def labeller(chromium: Browser, control: Site, store: AuditStore) -> AsyncIterator[Page]:
    context = await chromium.new_context(bypass_csp=True)  # axe is a script of the test's own
    async with signed_in(context, control, "labeller") as page:
        yield page
    await context.close()


async def test_a_person_labels_groups_by_keys_and_buttons(labeller: Page, store: AuditStore) -> None:
    await expect(labeller.get_by_role("link", name="Runs")).to_have_count(0)
    await labeller.get_by_role("link", name=f"Label groups of {OBJECTIVE}").click()
    group = labeller.get_by_role("article", name="Group to label")
    await expect(group).to_contain_text("Question 0")
    await expect(group.get_by_role("heading", level=2)).to_be_focused()
    await expect(group.get_by_role("region", name="The second response")).to_contain_text("wrong <b>bar</b>")
    shown = "image => image.complete && image.naturalWidth > 0"
    assert await group.get_by_role("img").evaluate(shown)
    for hidden in ("medical", "run:3", "gate", "score"):
        assert hidden not in (await group.inner_text()).lower()
    await expect(labeller.get_by_text("3 waiting, 0 labelled so far")).to_be_visible()
    found = await Axe().run(labeller)
    assert not [p["id"] for p in found.response["violations"] if p["impact"] in ("serious", "critical")]
    await labeller.set_viewport_size({"width": 360, "height": 740})
    assert await labeller.evaluate("document.documentElement.scrollWidth") <= 360
    await labeller.keyboard.press("1")
    await expect(group).to_contain_text("Question 1")
    await expect(labeller.get_by_text("You labelled 1 on this page")).to_be_visible()
    await group.get_by_role("button", name="Neither is better").click()
    await expect(group).to_contain_text("Question 2")
    await labeller.keyboard.press("s")
    await expect(labeller.get_by_text(f"No group of {OBJECTIVE} waits for a label")).to_be_visible()
    assert await store.closed(OBJECTIVE) == {"labelled": 1, "skipped": 1, "undecided": 1}
    [label] = (await store.labelled(OBJECTIVE)).values()
    assert (label.pair, label.by) == ((1, 0), "labeller")


async def test_a_key_labels_the_question_that_has_just_been_drawn(labeller: Page, store: AuditStore) -> None:
    """The key comes in the same turn of the browser as the question: a person's fast finger, every time."""
    await labeller.get_by_role("link", name=f"Label groups of {OBJECTIVE}").click()
    await expect(labeller.get_by_role("article", name="Group to label")).to_contain_text("Question 0")
    await labeller.evaluate(
        """() => {
            const drawn = new MutationObserver(() => {
                if (!document.querySelector("article")?.textContent.includes("Question 1")) return;
                drawn.disconnect();
                dispatchEvent(new KeyboardEvent("keydown", { key: "2" }));
            });
            drawn.observe(document.body, { subtree: true, childList: true, characterData: true });
        }"""
    )
    await labeller.keyboard.press("1")
    await expect(labeller.get_by_role("article", name="Group to label")).to_contain_text("Question 2")
    assert await store.closed(OBJECTIVE) == {"labelled": 2}


async def test_an_admin_sees_who_disagrees_and_withdraws_their_labels(
    chromium: Browser, control: Site, store: AuditStore
) -> None:
    tallies = PersonTallies(control.redis)
    for person, tally in (("ann", ("compared",)), ("<b>bob</b>", ("compared", "disagreed"))):
        await tallies.count(OBJECTIVE, person, *tally)
    for name, person in zip(await store.waiting(OBJECTIVE), ("ann", "<b>bob</b>"), strict=False):
        audit = await store.get(OBJECTIVE, name)
        assert audit is not None
        await store.settle(OBJECTIVE, name, audit, [audit.pair], person)
    context = await chromium.new_context(bypass_csp=True)
    async with signed_in(context, control, "admin") as page:
        await page.get_by_role("link", name="Audits").click()
        table = page.get_by_role("region", name="Table of people")
        await expect(table.get_by_role("row").filter(has_text="ann")).to_contain_text("0 (0 %)")
        await expect(table.get_by_role("row").filter(has_text="bob")).to_contain_text("1 (100 %)")
        found = await Axe().run(page)
        assert not [p["id"] for p in found.response["violations"] if p["impact"] in ("serious", "critical")]
        await table.get_by_role("button", name="Withdraw <b>bob</b>").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Withdraw all 1 labels of <b>bob</b>?")
        await dialog.get_by_role("button", name="Withdraw <b>bob</b>").click()
        await expect(table.get_by_role("row")).to_have_count(2)
        assert [label.person for label in (await store.labelled(OBJECTIVE)).values()] == ["ann"]
    await context.close()


async def test_an_admin_puts_pairs_worth_labelling_into_the_queue(chromium: Browser, control: Site) -> None:
    admin = {**bearer("admin"), "Content-Type": "application/x-ndjson"}
    router = httpx.AsyncClient(base_url=control.processes.environment["MOR_ROUTER_URL"], headers=admin, timeout=60)
    context = await chromium.new_context(bypass_csp=True)
    async with router as http:
        objective = {"name": "chosen", "text": "Be right.", "audited_by": "people"}
        (
            await http.post("/v1/objectives", json=objective, headers={"Content-Type": "application/json"})
        ).raise_for_status()
        async with signed_in(context, control, "admin") as page:
            await page.get_by_role("link", name="Audits").click()
            await page.get_by_role("link", name="Label groups of chosen").click()
            section = page.get_by_role("region", name="Worth labelling next")
            await expect(section.get_by_text("has no fitted gate to propose by")).to_be_visible()
            for kind, made in (("anchors", rows(24)), ("candidates", rows(30, start=700))):
                sent = await http.put(f"/v1/objectives/chosen/{kind}", content=jsonl(made))
                sent.raise_for_status()
            (await http.post("/v1/objectives/chosen/fit")).raise_for_status()
            await page.reload()
            table = section.get_by_role("region", name="Table of pairs worth labelling")
            await expect(table.get_by_role("row")).to_have_count(9)
            await expect(table.get_by_role("row").nth(1)).to_contain_text("answer")
            found = await Axe().run(page)
            assert not [p["id"] for p in found.response["violations"] if p["impact"] in ("serious", "critical")]
            await section.get_by_role("button", name="Have these 8 pairs labelled").click()
            await expect(section.get_by_text("8 proposed pairs wait for a label")).to_be_visible()
            group = page.get_by_role("article", name="Group to label")
            await expect(group).to_contain_text("answer")
            await page.keyboard.press("1")
            await expect(section.get_by_text("7 proposed pairs wait for a label")).to_be_visible()
            await page.set_viewport_size({"width": 360, "height": 740})
            assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        (await http.delete("/v1/objectives/chosen")).raise_for_status()
    await context.close()


async def test_a_viewer_sees_the_state_and_labels_nothing(viewer: Page, store: AuditStore) -> None:
    await viewer.get_by_role("link", name="Audits").click()
    row = viewer.get_by_role("row").filter(has_text=OBJECTIVE)
    await expect(row).to_contain_text("people")
    await expect(viewer.get_by_role("link", name=f"Label groups of {OBJECTIVE}")).to_have_count(0)
