"""Exports of ended runs' models: written by a process of their own, listed with hashes, and fetched as files.

``{run folder}/exports/step-00000040/`` is the model, and ``exports/step-00000040.json`` its list of files, which is
written last: an export without it is made again. The final model stays where it is; only its list is in ``exports``.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.errors import Conflict, NotFound, Unavailable
from mor_core.evaluated_steps import best_step
from mor_core.failures import describe_failure
from mor_core.plain_files import newest_first, read_plain_file
from mor_core.run_storage import ExportedFile, ExportRequest, ModelExport
from mor_core.stored import StoredEntries
from mor_core.tasks import in_thread, stop

from mor_trainer.config import ControlSettings
from mor_trainer.control.card_facts import card_facts
from mor_trainer.control.child_command import CommandKilled, run_command
from mor_trainer.control.database import Database
from mor_trainer.control.history import History
from mor_trainer.control.run_rows import check_over
from mor_trainer.results.model_card import CARD, model_card
from mor_trainer.results.model_files import list_model_files
from mor_trainer.run_files import EXPORTS, FINAL, checkpoint_of, checkpoints, folder_of, own_file, own_folder, step_of

_KEPT = 2
"""Exports of checkpoints that a run keeps, newest first: one to fetch, and one to compare it with."""
_LARGEST_LIST = 4 << 20
"""Bytes; a file has about 150."""
_NAME = re.compile(r"final|step-[0-9]{8,9}(-adapter)?")
_LISTS = StoredEntries("model_exports")
_RETRY_S = 30.0
"""``Retry-After`` while another model is exported: seconds to minutes."""

log = structlog.get_logger(__name__)
audit = structlog.get_logger("audit")


class ModelExports:
    """Exports of all runs, of which one is made at a time: each has a model in memory."""

    def __init__(self, settings: ControlSettings, database: Database, history: History) -> None:
        self._settings, self._database, self._history = settings, database, history
        self._task: asyncio.Task[None] | None = None
        self._made: tuple[str, str] | None = None
        """Run and name of the export that is being made."""
        self._errors: dict[tuple[str, str], str] = {}
        """Run and name -> why its last export failed."""

    async def close(self) -> None:
        """End the export that is being made."""
        if self._task is not None:
            await stop([self._task])

    async def begin(self, run: str, request: ExportRequest, by: str) -> ModelExport:
        """Begin to export a run's model, unless that is done or under way.

        Raises:
            NotFound: no such run, or no such checkpoint.
            Conflict: the run is not over, or has nothing to export.
            Unavailable: another model is being exported.
        """
        check_over(self._database, run)
        source, name = self._source(run, request)
        found = await in_thread(self._read, run, name, source)
        if found is not None or self._made == (run, name):
            return found or self._preparing(run, name)
        if self._made is not None:
            raise Unavailable(
                f"the model of run {self._made[0]} is being exported; try again when it is done", _RETRY_S
            )
        self._errors.pop((run, name), None)
        self._made = (run, name)
        self._task = asyncio.create_task(self._make(run, name, source, adapter=request.adapter), name="model export")
        audit.info("run exported", run=run, by=by, export=name)
        return self._preparing(run, name)

    async def get(self, run: str, name: str) -> ModelExport:
        """Return the state of an export.

        Raises:
            NotFound: no such run, or nobody asked for it.
        """
        check_over(self._database, run)
        if self._made == (run, name):
            return self._preparing(run, name)
        if (error := self._errors.get((run, name))) is not None:
            return self._preparing(run, name).model_copy(update={"state": "failed", "error": error})
        found = await in_thread(self._read, run, name, None) if _NAME.fullmatch(name) else None
        if found is None:
            raise NotFound(f"run {run} has no export {name[:80]!r}; POST /v1/runs/{run}/exports makes one")
        return found

    async def file(self, run: str, name: str, file: str) -> tuple[Path, ExportedFile]:
        """Return the path of a file of an export that is ready, and its line in the list.

        Raises:
            NotFound: there is no such file.
        """
        listed = {item.name: item for item in (await self.get(run, name)).files}
        path = self._model_folder(run, name) / file
        if file not in listed or not own_file(path, folder_of(self._settings.runs_dir, run)):
            raise NotFound(f"export {name} of run {run} has no file {file[:80]!r}; GET it for the list of its files")
        return path, listed[file]

    async def add_card(self, run: str) -> None:
        """Give the final model of a run that has finished a card with what the history knows."""
        if own_folder(self._model_folder(run, FINAL)):
            await self._replace_card(run, FINAL, adapter=False)

    async def _replace_card(self, run: str, name: str, *, adapter: bool) -> None:
        """Replace the card of a model, which has the run's specification alone. A model may do without, and those who
        wait for it, such as the heartbeat of a run that ends, may not."""
        step, disclosed = self._preparing(run, name).step, self._settings.card_clients
        try:
            facts = card_facts(self._database, self._history, run, step, adapter=adapter, disclosed=disclosed)
            await in_thread(atomic.write, self._model_folder(run, name) / CARD, model_card(facts).encode())
        except Exception as error:
            log.warning("a model card has no figures", run=run, export=name, error=describe_failure(error))

    async def ready_folder(self, run: str, name: str) -> Path:
        """Return the folder of an export that is ready.

        Raises:
            NotFound: no such run, nobody asked for the export, or a link is in its place.
            Conflict: it is not ready.
        """
        made = await self.get(run, name)
        if made.state != "ready":
            raise Conflict(f"export {name} of run {run} is {made.state}; wait until it is ready, or export it again")
        folder, runs = self._model_folder(run, name), folder_of(self._settings.runs_dir, run)
        if not folder.is_dir() or folder.resolve() != runs.resolve() / folder.relative_to(runs):
            raise NotFound(f"export {name} of run {run} is gone, or a link is in its place; export it again")
        return folder

    def _source(self, run: str, request: ExportRequest) -> tuple[Path, str]:
        """Return the folder that is exported, and the name of the export.

        Raises:
            NotFound: there is no such checkpoint.
            Conflict: the run has nothing to export.
        """
        folder = folder_of(self._settings.runs_dir, run)
        kept = [step_of(path) for path in checkpoints(folder)]
        wanted = request.checkpoint
        if wanted is None:
            wanted = "final" if own_folder(folder / FINAL) and not request.adapter else "latest"
        if wanted == "final":
            if request.adapter:
                raise Conflict(
                    "the adapter of the final model is merged into it; export the one of the latest checkpoint"
                )
            if not own_folder(folder / FINAL):
                raise Conflict(f"run {run} has no final model; export its latest or its best checkpoint")
            return folder / FINAL, FINAL
        if not kept:
            raise Conflict(
                f"run {run} has no checkpoint: it ended before the first one, or its checkpoints were deleted"
                + ("; export its final model" if own_folder(folder / FINAL) else "; create a new run")
            )
        if wanted == "latest":
            step = kept[-1]
        elif wanted == "best":
            step = self._best(run, kept)
        elif int(wanted) in kept:
            step = int(wanted)
        else:
            listed = ", ".join(map(str, kept))
            raise NotFound(f"run {run} has no checkpoint of step {int(wanted)}; it keeps those of step {listed}")
        return checkpoint_of(folder, step), f"step-{step:08d}{'-adapter' if request.adapter else ''}"

    def _best(self, run: str, kept: list[int]) -> int:
        """Return the step of the kept checkpoint that has the best evaluation by the latest gate.

        Raises:
            Conflict: none of them was evaluated.
        """
        best = best_step(evaluated for evaluated in self._history.evaluated(run) if evaluated.step in kept)
        if best is None:
            raise Conflict(
                f"no kept checkpoint of run {run} (steps {', '.join(map(str, kept))}) was evaluated; export the "
                "latest, and set evaluation.every to a multiple of checkpoint_every in the next run"
            )
        return best.step

    def _model_folder(self, run: str, name: str) -> Path:
        folder = folder_of(self._settings.runs_dir, run)
        return folder / FINAL if name == FINAL else folder / EXPORTS / name

    def _list_file(self, run: str, name: str) -> Path:
        return folder_of(self._settings.runs_dir, run) / EXPORTS / f"{name}.json"

    @staticmethod
    def _preparing(run: str, name: str) -> ModelExport:
        step = None if name == FINAL else int(name.split("-")[1])
        return ModelExport(run=run, name=name, step=step, state="preparing")

    def _read(self, run: str, name: str, source: Path | None) -> ModelExport | None:
        """Read the list of an export; ``None`` where there is none, or where ``source`` was written after it."""
        file = self._list_file(run, name)
        try:
            written = file.stat().st_mtime
            if source is not None and source.stat().st_mtime > written:
                return None
        except FileNotFoundError:
            return None
        return _LISTS.parse(
            file,
            file,
            lambda path: ModelExport.model_validate_json(read_plain_file(path, _LARGEST_LIST), extra="ignore"),
        )

    async def _make(self, run: str, name: str, source: Path, *, adapter: bool) -> None:
        """Write the model and its list of files."""
        try:
            await in_thread(self._make_room, run, name)
            if name != FINAL:
                await _run_exporter(source, self._model_folder(run, name), adapter=adapter)
            await self._replace_card(run, name, adapter=adapter)
            listed = await in_thread(list_model_files, self._model_folder(run, name))
            ready = self._preparing(run, name).model_copy(update={"state": "ready", "files": listed})
            check_over(self._database, run)
            await in_thread(_write_list, self._list_file(run, name), ready)
            log.info("model exported", run=run, export=name)
        except Exception as error:  # whoever asked for it reads the reason
            self._errors[run, name] = describe_failure(error)
            log.warning("the model could not be exported", run=run, export=name, error=describe_failure(error))
        finally:
            self._made = None
        if self._database.row("SELECT 1 AS one FROM runs WHERE id=:run", run=run) is None:
            self._errors.pop((run, name), None)
            await in_thread(atomic.remove, folder_of(self._settings.runs_dir, run))  # written after the run was deleted

    def _make_room(self, run: str, name: str) -> None:
        """Delete a former export of this name, and the oldest ones."""
        folder = folder_of(self._settings.runs_dir, run) / EXPORTS
        folder.mkdir(exist_ok=True)
        if not own_folder(folder):
            raise Conflict(
                f"{folder} is a link, so what is behind it may be somebody else's; put a folder in its place"
            )
        for leftover in [path for suffix in atomic.LEFTOVERS for path in folder.glob(f".*{suffix}")]:
            atomic.remove(leftover)
        former = newest_first(path for path in folder.iterdir() if path.is_dir())
        others = [path for path in former if path.name != name]
        for path in [*others[_KEPT - 1 :], *(path for path in former if path.name == name)]:
            self._list_file(run, path.name).unlink(missing_ok=True)
            atomic.delete(path)


async def _run_exporter(checkpoint: Path, target: Path, *, adapter: bool) -> None:
    """Run the process that writes the model.

    Raises:
        Conflict: it failed; the message has its reason.
    """
    try:
        await run_command("export", str(checkpoint), str(target), *(["--adapter"] if adapter else []))
    except CommandKilled as error:
        raise Conflict(
            "the export was killed, mostly for want of memory; run 'mor-trainer export CHECKPOINT FOLDER' where a "
            "worker runs, or raise run control's memory"
        ) from error


def _write_list(file: Path, made: ModelExport) -> None:
    """Write the list of an export, unless its folder is gone: the run was deleted or pruned meanwhile."""
    if file.parent.exists():
        atomic.write(file, made.model_dump_json().encode())
