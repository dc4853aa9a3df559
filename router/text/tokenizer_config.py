"""What stands beside a checkpoint's tokenizer: its special tokens by their roles, and its chat template.

tokenizer_config.json       special tokens, a chat template or several by name       (optional)
special_tokens_map.json     special tokens that tokenizer_config.json does not name   (optional)
chat_template.jinja         goes before the template in tokenizer_config.json         (optional)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baton.errors import ConfigError
from router.text.checkpoint import read_json
from router.text.template import ChatTemplate


def read_tokenizer_config(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The texts of `bos_token` and its like, and all of tokenizer_config.json."""
    config = _read(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(_read(folder / "special_tokens_map.json"))
    return special_tokens | _special_tokens(config), config


def read_template(
    folder: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """Of several named templates, `default`. Raises ConfigError where there is one that cannot be used."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path} cannot be read as UTF-8: {error}", field=path.name
            ) from error
        return ChatTemplate(source, special_tokens, file=path.name)
    file = "tokenizer_config.json.chat_template"
    match tokenizer_config.get("chat_template"):
        case None:
            return None
        case str(source):
            return ChatTemplate(source, special_tokens, file=file)
        case list(named):
            for entry in named:
                match entry:
                    case {"name": "default", "template": str(source)}:
                        return ChatTemplate(source, special_tokens, file=file)
    raise ConfigError("must be a template, or a list with one named default", field=file)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Each is a text, or an object that has it as `content`."""
    found: dict[str, str] = {}
    for name, value in config.items():
        match value:
            case str(text) | {"content": str(text)} if name.endswith("_token"):
                found[name] = text
    return found
