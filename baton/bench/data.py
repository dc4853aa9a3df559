"""Where published data lies: beside the repository, or where BATON_DATA says."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

from baton.errors import ConfigError

_BESIDE = Path(__file__).parents[2].parent / "shared" / "data"


def data_file(name: str) -> Path:
    """Raises ConfigError where there is none."""
    path = Path(os.environ.get("BATON_DATA", _BESIDE)) / name
    if not path.is_file():
        raise ConfigError(f"there is no {path} (BATON_DATA names another folder)", field=name)
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a gzipped CSV file with a header."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
