"""What a checkpoint's `generation_config.json` recommends for sampling. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.models.json_fields import JsonFields, read_json


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """None where the checkpoint recommends nothing. `eos_token_ids` fall back to config.json's."""

    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Reads `generation_config.json`, which a checkpoint may lack, and config.json's end tokens."""
    config_path = folder / "config.json"
    model_eos = JsonFields(config_path, read_json(config_path)).token_ids("eos_token_id")
    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationDefaults(eos_token_ids=model_eos)
    fields = JsonFields(path, read_json(path))

    def number(name: str) -> float | None:
        return fields.number(name) if fields.has(name) else None

    return GenerationDefaults(
        eos_token_ids=fields.token_ids("eos_token_id") or model_eos,
        do_sample=fields.boolean("do_sample") if fields.has("do_sample") else None,
        temperature=number("temperature"),
        top_k=fields.integer("top_k", minimum=0) if fields.has("top_k") else None,
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )
