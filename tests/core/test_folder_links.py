"""Links in a model's folder stay in it, or lead to blobs of a hub cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from mor_core.errors import Invalid
from mor_core.folder_links import check_model_folder
from mor_core.model_family import model_class
from mor_core.vision import load_processor
from mor_reward.backbones.encoders import load_model
from mor_router.embedding.models import TextModel
from transformers import AutoModel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "secret.json").write_text("{}")
    return folder


def test_plain_folders_and_hub_names_are_taken(model: Path) -> None:
    (model / "again.json").symlink_to("config.json")
    check_model_folder(str(model))
    check_model_folder("owner/name")
    (model.parent / "link").symlink_to(model)
    check_model_folder(str(model.parent / "link"))


def test_a_snapshot_of_a_hub_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub" / "models--owner--name"
    snapshot = cache / "snapshots" / "0123"
    for folder in (snapshot / "1_Pooling", cache / "blobs"):
        folder.mkdir(parents=True)
    (cache / "blobs" / "abc").write_text("{}")
    for name in ("config.json", "1_Pooling/config.json"):
        depth = "../" * (2 + name.count("/"))
        (snapshot / name).symlink_to(f"{depth}blobs/abc")
    check_model_folder(str(snapshot))
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "config.json").symlink_to(cache / "blobs" / "abc")
    with pytest.raises(Invalid, match="leads out of its folder"):
        check_model_folder(str(copied))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    check_model_folder(str(copied))


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json"])
@pytest.mark.parametrize(
    ("target", "problem"),
    [("{root}/secret.json", "leads out of its folder; put the file itself there"), ("gone", "leads nowhere")],
)
def test_a_link_that_leads_elsewhere_is_named_by_whoever_loads_the_model(
    model: Path, name: str, target: str, problem: str
) -> None:
    (model / name).symlink_to(target.format(root=model.parent))
    with pytest.raises(Invalid, match=problem):
        load_processor(str(model))
    with pytest.raises(Invalid, match=problem):
        load_model(AutoModel, str(model), Path.cwd(), pretrained=True, role="text encoder")
    with pytest.raises(Invalid, match=problem):
        TextModel(str(model))


def test_a_folder_that_is_not_there_is_named_before_the_hub_is_asked(model: Path) -> None:
    for name in (str(model / "none"), "./none", "../none"):
        with pytest.raises(Invalid, match="there is no such folder; give the folder of a checkpoint"):
            model_class(name)
        with pytest.raises(Invalid, match="there is no such folder"):
            load_processor(name)


def test_a_link_in_a_circle_is_named(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("config.json")
    with pytest.raises(Invalid, match="leads nowhere"):
        check_model_folder(str(model))
