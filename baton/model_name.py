"""What a model is called where nobody says so, and how folder and name are given together."""

from __future__ import annotations

from pathlib import Path

from baton.errors import ConfigError


def name_of(folder: str | Path) -> str:
    """The last part of a checkpoint's folder, or the name of a shape as it is."""
    name = Path(folder).name  # of a link its own name
    if name in ("", ".."):
        name = Path(folder).resolve().name
    if not name:
        raise ConfigError(
            f"{str(folder)!r} has no name of its own to call the model by", field="model"
        )
    return name


def split(entry: str) -> tuple[str, str]:
    """The name, empty where there is none, and the folder of "NAME=FOLDER" or "FOLDER". A folder may have a
    = in its name, and a name a /: what exists decides, else the first =."""
    if entry.startswith(("/", ".", "~")) or "=" not in entry or Path(entry).is_dir():
        return "", entry
    cuts = [index for index, letter in enumerate(entry) if letter == "="]
    for cut in cuts:
        if Path(entry[cut + 1 :]).expanduser().is_dir():
            return entry[:cut], entry[cut + 1 :]
    return entry[: cuts[0]], entry[cuts[0] + 1 :]
