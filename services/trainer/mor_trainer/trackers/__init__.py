"""Experiment trackers, which receive the figures of runs besides run control's own history."""

from mor_trainer.trackers.tracker import Tracker
from mor_trainer.trackers.trackers import Trackers, configured

__all__ = ["Tracker", "Trackers", "configured"]
