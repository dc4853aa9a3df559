"""python -m tests.faults NUM_TRANSFERS SEED: what `make faults` runs. Ends with one line of JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
from dataclasses import asdict

from tests.faults.campaign import possible_transports, run


def main() -> int:
    num_transfers, seed = (int(argument) for argument in sys.argv[1:])
    logging.basicConfig(level=logging.ERROR)  # warnings are what is to be expected here
    print(f"{num_transfers} transfers, seed {seed}", file=sys.stderr)
    result = asyncio.run(run(num_transfers, seed, possible_transports(), _show))
    print(json.dumps(asdict(result) | {"rerouted_after_s": _summary(result.rerouted_after_s)}))
    return 0 if result.is_clean else 1


def _summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"n": 0}
    return {"n": len(seconds), "median": statistics.median(seconds), "max": max(seconds)}


def _show(done: int, total: int) -> None:
    if done % max(1, total // 20) == 0:
        print(f"{done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
