"""How many connections this process may hold: one file descriptor each."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)


def raise_limit() -> None:
    """Raises the soft limit, which on most systems is 1,024 for the sake of programs that use
    `select`, to what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log.info("may open %d files instead of %d", hard, soft)
