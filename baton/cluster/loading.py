"""How far workers that start have loaded their model, from the logs that they write here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baton.cluster.process import log_tail
from baton.cluster.reconcile import Instance, Phase

_SAID = re.compile(r"worker\.loading: (loaded .+)$", re.MULTILINE)


@dataclass(slots=True)
class Loading:
    """`folder`: of the logs."""

    folder: Path
    _told: dict[str, str] = field(default_factory=dict)

    def news(self, known: Mapping[str, Instance]) -> Iterator[str]:
        """A line for each worker that has got further since this was asked last."""
        for name, instance in known.items():
            if instance.phase is not Phase.STARTING:
                continue
            said = _SAID.findall(log_tail(self.folder / f"{name}.log"))
            if said and self._told.get(name) != said[-1]:
                self._told[name] = said[-1]
                yield f"{name} has {said[-1]}"
