"""How Baton's processes log: one line per event on stderr."""

from __future__ import annotations

import logging

# What would end or rewrite a line, where a name that somebody else chose holds it.
_ESCAPED = {
    code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
}


class OneLine(logging.Formatter):
    """A record's message on one line, whatever is in it; tracebacks follow on theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        return super().formatMessage(record).translate(_ESCAPED)


def configure(process: str, level: str = "INFO") -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "httpx", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
