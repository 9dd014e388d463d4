"""Fence around what the attempts at a run share: an attempt that a later one superseded writes nothing any more.

Run control numbers the attempts. The queue server keeps the newest number in ``mor:{RUN}:attempt``. A script that
writes for an attempt begins with ``FENCED``: it refuses an older attempt than the newest, and notes a newer one. A
prompt carries the number of the attempt that issued it, so that a stage writes for that attempt. A number that is
missing, as in what earlier releases stored, counts as 0.

Run control decides who holds a run, not the queue server: a worker that is refused asks it, and sets the number right
where it still holds the run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mor_core.errors import Superseded
from mor_core.stored import LEFTOVER_S

ATTEMPT = "attempt"
"""Key of a run with the number of its newest attempt."""
REFUSED = -2
"""Reply of a script to an attempt that is superseded."""
UNFENCED = ""
"""Argument of a script in place of an attempt: the writer is not one, and is never refused."""

# The last of KEYS is the newest attempt, the last of ARGV the one that writes.
FENCED = f"""
local function is_superseded(name, own)
  if not own then return false end
  local found = redis.pcall('GET', name)
  if type(found) == 'table' then
    if not found.err:find('WRONGTYPE') then error(found) end
    redis.call('DEL', name)
    found = nil
  end
  local newest = tonumber(found or 0) or 0
  if newest > own then return true end
  if newest ~= own then redis.call('SET', name, ARGV[#ARGV], 'EX', {LEFTOVER_S}) end
  return false
end
if is_superseded(KEYS[#KEYS], tonumber(ARGV[#ARGV])) then return {REFUSED} end
"""


async def _unknown() -> bool:
    return False


@dataclass(frozen=True)
class Fence:
    """Right of one attempt to write for its run."""

    run: str
    attempt: int
    lost: Callable[[], str | None] = lambda: None
    """Returns the reason why the lease on the run is lost; ``None`` while it is valid."""
    confirm: Callable[[], Awaitable[bool]] = _unknown
    """Asks run control whether this attempt holds the run."""

    def check(self) -> None:
        """Check that the attempt may still write, as far as this process knows.

        Raises:
            Superseded: its lease is lost.
        """
        if (reason := self.lost()) is not None:
            raise Superseded(reason)

    def check_reply(self, reply: object) -> None:
        """Check the reply of a script.

        Raises:
            Superseded: the script refused to write.
        """
        if reply == REFUSED:
            raise superseded(self.run, self.attempt)


def superseded(run: str, attempt: int) -> Superseded:
    """Return the error of an attempt that was refused."""
    return Superseded(f"attempt {attempt} at run {run} is superseded by a later one, which has written")
