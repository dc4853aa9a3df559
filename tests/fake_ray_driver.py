"""Stands in for `baton.cluster.ray_driver`: fails to start as often as its folder says, breaks when told."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from baton.cluster.call_pipe import answer_calls
from baton.errors import ConfigError, Unavailable


class FakeDriver:
    def start(self, folder: Path) -> None:
        """As `folder/../tries` says of this try: "fail", "die" or "work"."""
        if folder.exists():
            raise ConfigError("is not fresh", field=str(folder))
        folder.mkdir()
        tries = (folder.parent / "tries").read_text().split()
        what = tries[len(list(folder.parent.glob("r*/"))) - 1]
        if what == "die":
            os.abort()
        if what == "fail":
            raise Unavailable("Ray did not start: for the test")

    def join(self, address: str) -> None:
        raise ConfigError(f"no Ray at {address}", field="address")

    def wait_broken(self) -> str:
        self.sleep()
        return ""

    def sleep(self) -> None:
        time.sleep(3600)

    def pid(self) -> int:
        return os.getpid()

    def raises(self, text: str) -> None:
        raise Unavailable(text, field="its field")

    def breaks(self) -> None:
        raise ValueError("not one of ours")


if __name__ == "__main__":
    answer_calls(Connection(int(sys.argv[1])), FakeDriver())
