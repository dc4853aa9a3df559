"""How Baton's processes log: one line per event on stderr."""

from __future__ import annotations

import logging


def configure(process: str, level: str = "INFO") -> None:
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for noisy in ("uvicorn.error", "httpx", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
