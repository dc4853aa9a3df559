"""Whether a checkpoint's folder can be one, found out without torch and before anything is started."""

from __future__ import annotations

from pathlib import Path

from baton.engine.config import EngineConfig
from baton.engine.models.json_fields import read_json
from baton.errors import ConfigError


def check_folder(config: EngineConfig) -> None:
    """Raises ConfigError where loading is sure to fail. A dummy may be a shape's name, which is not looked
    into."""
    if not str(config.model):
        raise ConfigError("is required", field="model")
    folder = Path(config.model)
    if config.load_format == "dummy" and not folder.exists():
        return
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"must be a checkpoint's folder; {folder} {problem}", field="model")
    read_json(folder / "config.json")
    if config.load_format == "auto" and not any(folder.glob("model*.safetensors*")):
        raise ConfigError(f"{folder} holds no model.safetensors, nor parts of one", field="model")
