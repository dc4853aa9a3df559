"""Engine profiles by name: `mocker`, a row of a published table, or a file that `baton profile` wrote.

mocker
splitwise/MODEL/HARDWARE/TENSOR_PARALLEL      splitwise/llama2-70b/h100-80gb/8
silicon/MODEL/SYSTEM/PRECISION                silicon/Qwen/Qwen3-32B/h100_sxm/fp8
PATH.json
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from baton.bench.data import data_file, read_csv
from baton.errors import ConfigError
from baton.planner.profile import MOCKER, DecodeCost, EngineProfile
from baton.planner.tables import silicon, splitwise
from baton.prefill_cost import PrefillCost


def find_profile(name: str) -> EngineProfile:
    """Raises ConfigError."""
    source, _, rest = name.partition("/")
    if name == "mocker":
        return MOCKER
    if source == "splitwise" and rest.count("/") == 2:
        model, hardware, parallel = rest.split("/")
        rows = read_csv(data_file("splitwise_perf_model.csv.gz"))
        return splitwise(rows, model, hardware, parallel)
    if source == "silicon" and rest.count("/") >= 2:
        model, system, precision = rest.rsplit("/", 2)
        return silicon(read_csv(data_file("silicon_sample.csv.gz")), model, system, precision)
    if name.endswith(".json"):
        return read_profile(Path(name))
    raise ConfigError(
        f"is none of mocker, splitwise/MODEL/HARDWARE/TP, silicon/MODEL/SYSTEM/PRECISION and a "
        f".json file: {name!r}",
        field="profile",
    )


def write_profile(profile: EngineProfile, path: Path) -> None:
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")


def read_profile(path: Path) -> EngineProfile:
    """Raises ConfigError that names the file and what is wrong with it."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        prefill, decode = PrefillCost(**fields.pop("prefill")), DecodeCost(**fields.pop("decode"))
        return EngineProfile(prefill=prefill, decode=decode, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"is no engine profile: {error!r}", field=str(path)) from error
