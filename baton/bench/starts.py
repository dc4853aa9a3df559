"""How often a cluster starts: the same one, started and stopped again and again.

    python -m baton.bench.starts [N]      N: 100; exits with 1 unless all have served

A start counts as served when a prompt has been answered. Starts of Ray that failed and were tried again are
counted apart: a user sees only that it takes longer.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from baton import Client
from baton.bench.statistics import summarize
from baton.cluster.ray_cluster import RayCluster
from baton.cluster.spec import Settings, read
from baton.errors import BatonError

MODEL = Path(__file__).parents[2] / "demo" / "model"


@dataclass(slots=True)
class Starts:
    """`errors`: of those that did not serve. `tried_again`: how often Ray was."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tried_again: list[str] = field(default_factory=list)

    def start(self) -> None:
        """One start, one prompt, one stop."""
        workers = {"model": str(MODEL), "num_blocks": 64}
        spec = read(Settings(router={"grpc_port": 0, "http_port": 0}, workers=workers))
        began_s = time.monotonic()
        try:
            with RayCluster(spec, tell=self._tell) as cluster:
                ready_s = time.monotonic() - began_s
                with Client(cluster.address) as client:
                    client.generate("To be", max_tokens=1)
                self.seconds.append(ready_s)
        except BatonError as error:
            self.errors.append(str(error))

    def _tell(self, line: str) -> None:
        if "trying again" in line:
            self.tried_again.append(line)

    def line(self) -> str:
        times = "".join(f", {name} {each:.1f} s" for name, each in summarize(self.seconds).items())
        return (
            f"{len(self.seconds)} served, {len(self.errors)} failed, Ray tried again "
            f"{len(self.tried_again)} times{times}"
        )


def main(number: int) -> int:
    starts = Starts()
    for _ in range(number):
        starts.start()
        print(starts.line(), flush=True)
    for each in (*starts.errors, *starts.tried_again):
        print(each)
    return 1 if starts.errors else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
