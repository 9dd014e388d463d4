"""A training whose disk is full waits for room, and ends on request with what it had."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from mor_core import disk_full
from mor_reward import model_store
from mor_reward.backbones import VlmConfig
from mor_reward.preference_trainer import TrainingInterrupted
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train

from tests.small_files import largest_file

_SMALL = 1 << 20
"""Bytes: less than a checkpoint of the tiny model, more than pytest writes meanwhile."""


class Requests:
    """Requests to stop: none until the training has waited for a while, and then ``stop``, or room."""

    def __init__(self, work: Path, *, stop: bool) -> None:
        """``work``: folder of the checkpoint, which the first attempt to write one makes."""
        self._work, self._stop = work, stop
        self.asked = 0

    def __call__(self) -> bool:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.asked += soft == _SMALL and self._work.exists()
        if self.asked > 5 and not self._stop:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return self.asked > 5 and self._stop


@pytest.mark.parametrize("stop", [False, True])
def test_a_training_waits_for_room(
    stop: bool, tiny_vlm: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_full, "RETRY_S", 0.4)
    config = TrainConfig(epochs=1, checkpoint_every=1, batch_size=16)
    job = TrainingJob(colours, tmp_path / "m", "m", "", VlmConfig(model=str(tiny_vlm), precision="float32"), config)
    requests = Requests(tmp_path / "m.training", stop=stop)
    with largest_file(_SMALL):
        if stop:
            with pytest.raises(TrainingInterrupted, match="make room"):
                train(job, NoProgress(), requests)
        else:
            manifest = train(job, NoProgress(), requests)
    if stop:
        assert list(tmp_path.iterdir()) == []
    else:
        assert requests.asked > 5
        assert model_store.read_manifest(tmp_path / "m") == manifest
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
