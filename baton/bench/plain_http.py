"""A second opinion on time to first token over HTTP: a process of its own that shares nothing with the load
generator, no library and no parser, and looks at what its socket gives it.

    python -m baton.bench.plain_http HOST PORT

It sends every line of its standard input as a body to /v1/completions, all over one connection, and prints
the seconds from sending until the first text.
"""

from __future__ import annotations

import re
import socket
import sys
import time

_TEXT = re.compile(rb'"text":"[^"]')  # of a chunk that has one
_END = b"\r\n0\r\n\r\n"


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    with socket.create_connection((host, port)) as server:
        for line in sys.stdin.buffer:
            print(first_text_s(server, host, line.rstrip(b"\n")), flush=True)


def first_text_s(server: socket.socket, host: str, body: bytes) -> float:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent_s = time.perf_counter()
    server.sendall(head.encode() + body)
    first_s: float | None = None
    answer = b""
    while not answer.endswith(_END):
        part = server.recv(1 << 16)
        now_s = time.perf_counter()
        answer += part
        if not part or not answer.startswith(b"HTTP/1.1 200 "[: len(answer)]):
            raise SystemExit(f"not an answer to the end: {answer[:1000]!r}")
        if first_s is None and _TEXT.search(answer):
            first_s = now_s - sent_s
    if first_s is None:
        raise SystemExit(f"an answer without text: {answer[:1000]!r}")
    return first_s


if __name__ == "__main__":
    main()
