"""What models are called, and which folders hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton import model_name
from baton.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with checkpoints in it."""
    folder = tmp_path / "run"
    for name in ("step=100", "plain", "a=b"):
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("entry", "name", "folder"),
    [
        ("plain", "", "plain"),
        ("m=plain", "m", "plain"),
        ("org/m=plain", "org/m", "plain"),
        ("step=100", "", "step=100"),
        ("./step=100", "", "./step=100"),
        ("/data/step=100", "", "/data/step=100"),  # also where it is not there yet
        ("m=step=100", "m", "step=100"),
        ("step=100=plain", "step=100", "plain"),
        ("a=b=a=b", "a=b", "a=b"),
        ("m=/missing/step=1", "m", "/missing/step=1"),
    ],
)
def test_name_and_folder_are_told_apart(here: Path, entry: str, name: str, folder: str) -> None:
    assert model_name.split(entry) == (name, folder)


def test_a_folder_names_its_model(here: Path) -> None:
    assert model_name.name_of("/data/step=100") == "step=100"
    assert model_name.name_of(".") == "run"
    assert model_name.name_of("plain/..") == "run"
    assert model_name.name_of("llama-1b") == "llama-1b"
    (here / "current").symlink_to(here / "plain")
    assert model_name.name_of("current") == "current"
    with pytest.raises(ConfigError, match="no name"):
        model_name.name_of("/")
