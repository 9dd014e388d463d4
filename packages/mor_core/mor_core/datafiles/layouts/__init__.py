"""Layouts of published data: one class a file, found by the columns of the first row.

A new layout is a subclass of ``Layout`` in a file of its own, and its place in ``LAYOUTS``: before every layout that
fits its columns as well.
"""

from mor_core.datafiles.layouts.arena import Arena
from mor_core.datafiles.layouts.compared_responses import HelpSteer2Preferences, HelpSteer3Preferences
from mor_core.datafiles.layouts.help_steer import HelpSteer
from mor_core.datafiles.layouts.implicit_prompt import ImplicitPrompt
from mor_core.datafiles.layouts.layout import Layout
from mor_core.datafiles.layouts.ms_swift import MsSwift
from mor_core.datafiles.layouts.nectar import Nectar
from mor_core.datafiles.layouts.problems_with_answers import ProblemWithAnswer
from mor_core.datafiles.layouts.ranked_responses import RankedResponses
from mor_core.datafiles.layouts.rlaif_v import RlaifV
from mor_core.datafiles.layouts.rlhf_v import RlhfV
from mor_core.datafiles.layouts.share_gpt import ShareGpt
from mor_core.datafiles.layouts.trl_rows import Trl
from mor_core.datafiles.layouts.ultrafeedback import UltraFeedback
from mor_core.datafiles.layouts.unpaired import Unpaired
from mor_core.datafiles.layouts.verl_rows import Verl
from mor_core.datafiles.layouts.vlfeedback import VlFeedback

TRL = Trl()
LAYOUTS: tuple[Layout, ...] = (
    Verl(),
    VlFeedback(),
    UltraFeedback(),
    RankedResponses(),
    Nectar(),
    HelpSteer2Preferences(),
    HelpSteer3Preferences(),
    HelpSteer(),
    Arena(),
    Unpaired(),
    ShareGpt(),
    MsSwift(),
    RlhfV(),
    RlaifV(),
    ProblemWithAnswer(),
    ImplicitPrompt(),
    TRL,
)


def layout_of(columns: set[str]) -> Layout:
    """Return the layout that ``columns`` fit, or TRL's, the common one, whose errors then name what is missing."""
    return next((layout for layout in LAYOUTS if layout.fits(columns)), TRL)
