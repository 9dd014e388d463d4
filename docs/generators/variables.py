"""packages/mor_core/mor_core/known_variables.py, generated from the settings classes of all processes."""

from __future__ import annotations

from mor_core.settings import PREFIX, SECRETS_DIR

from generators.settings import PROCESSES

_OTHERS = {SECRETS_DIR, "MOR_CONFIG", "MOR_REWARD_TOKEN", "MOR_ENROLMENT_TOKEN"}
"""Variables that commands read beside the settings classes."""


def module() -> str:
    """Return the module's text."""
    fields = {f"{PREFIX}{name.upper()}" for settings in PROCESSES.values() for name in settings.model_fields}
    names = "".join(f'        "{name}",\n' for name in sorted(fields | _OTHERS))
    return f'''"""Names of the variables that the processes of MoR read, written by ``python docs/generate.py``.

Services may share an environment, so each accepts the variables of all, and warns of the rest.
"""

KNOWN = frozenset(
    {{
{names}    }}
)
'''
