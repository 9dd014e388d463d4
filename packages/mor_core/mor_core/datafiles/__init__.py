"""Readers of prompts and preferences, as published or as ``mor.prompts/1`` and ``mor.prefs/1``.

=========  ==========================================================================  ==========  =========
column     content                                                                      prompts/1   prefs/1
=========  ==========================================================================  ==========  =========
prompt     messages (OpenAI or TRL chat format) or a string, which is one user message  required    required
images     list of files below the data set's folder, data URIs, Parquet image cells    optional    optional
chosen     the better response: a string, or one assistant message                      -           required
rejected   the worse response, in the same form                                         -           required
id         name of the row, unique in the data; by default its line, as line-3          optional    optional
domain     label for reports and the clients' rules; never an input of the gate         optional    optional
=========  ==========================================================================  ==========  =========

::

    sources/         a file, folder, shards, archive or hub name -> rows
    column_map       renames columns as asked
    layouts/         rows of one published layout each -> the columns above
    reading          checks and parses them, with the pictures (picture_cells) and conversations
    conversion       writes them to one file
"""

from mor_core.datafiles.column_map import ColumnMap
from mor_core.datafiles.conversion import check_target, preference_row, write_preferences, write_prompts
from mor_core.datafiles.reading import (
    ParsedRow,
    Preference,
    Prompt,
    preferences_of,
    read_preferences,
    read_prompts,
    scan_preferences,
    scan_prompts,
)

__all__ = [
    "ColumnMap",
    "ParsedRow",
    "Preference",
    "Prompt",
    "check_target",
    "preference_row",
    "preferences_of",
    "read_preferences",
    "read_prompts",
    "scan_preferences",
    "scan_prompts",
    "write_preferences",
    "write_prompts",
]
