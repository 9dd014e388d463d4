"""The page of what runs keep: sizes, limits, and the buttons that archive, prune and delete a run that is over."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from tests.browser.site import Site
from tests.browser.test_dashboard import go
from tests.trainer.kit import bearer

pytestmark = [pytest.mark.anyio, pytest.mark.browser]


async def ended(control: Site, name: str) -> str:
    """Make a failed run with a checkpoint of 2,000 bytes."""
    run = await control.begin(name, 20, 2)
    async with control.http() as http:
        beat = {"attempt": 1, "state": "failed", "error": "it had to"}
        reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
        reply.raise_for_status()
    checkpoint = control.processes.runs_dir / run / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "shard").write_bytes(bytes(2048))
    return run


async def test_a_run_is_archived_and_deleted_after_a_question_with_what_it_frees(admin: Page, control: Site) -> None:
    run = await ended(control, "kept")
    await go(admin, "/storage")
    row = admin.get_by_role("row").filter(has=admin.get_by_role("link", name=run))
    await expect(row).to_contain_text("2 KiB")
    await row.get_by_role("button", name=f"Archive {run}", exact=True).click()
    await expect(row).to_contain_text("archived")
    await row.get_by_role("button", name=f"Unarchive {run}").click()
    await expect(row.get_by_role("button", name=f"Archive {run}", exact=True)).to_be_visible()
    await row.get_by_role("button", name=f"Delete {run}").click()
    dialog = admin.get_by_role("dialog")
    await expect(dialog).to_contain_text("This frees 2 KiB (files: 1).")
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(row).to_be_visible()
    await row.get_by_role("button", name=f"Delete {run}").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)
    async with control.http() as http:
        assert (await http.get(f"/v1/runs/{run}")).status_code == 404


async def test_a_viewer_sees_sizes_and_limits_and_changes_nothing(viewer: Page, control: Site) -> None:
    run = await ended(control, "seen")
    await go(viewer, "/storage")
    await expect(viewer.get_by_role("row").filter(has=viewer.get_by_role("link", name=run))).to_be_visible()
    await expect(viewer.get_by_role("region", name="Limits")).to_contain_text("MOR_ENDED_RUN_DAYS")
    await expect(viewer.get_by_role("button", name=f"Delete {run}")).to_have_count(0)
