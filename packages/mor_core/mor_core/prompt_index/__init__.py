"""Index of a large prompt set: opened in a moment, with texts on disk and pictures read when they are needed.

::

    open_prompts ─▶ fingerprint      of the data's files and of the code that reads them: the name of the index
                 ─▶ file_lock        one builder at a time; no deletion while an index is in use
                 ─▶ index_builder    reads all rows once (``datafiles``) ─▶ index_file
                 ─▶ PromptSet        rows of an index_file, as a sequence
    sweep_indexes                    deletes what is no longer used

An index is a folder: ``manifest.json``, ``prompts.sqlite3`` with a row for each prompt, and ``pictures.bin`` with the
pictures that the data holds inside compressed or encoded files. Pictures in files of their own or in a tar stay there.
"""

from mor_core.prompt_index.index_folders import open_prompts, refuse_problems, sweep_indexes
from mor_core.prompt_index.prompt_set import PromptSet

__all__ = ["PromptSet", "open_prompts", "refuse_problems", "sweep_indexes"]
