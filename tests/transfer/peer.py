"""A process for the tests to stop and to kill: a prefill or a decode rank that obeys line by line.

python -m tests.transfer.peer prefill KIND    connects to the offer it reads, then `write` (all, and
                                              says their checksums), `stream` (until fenced), `fence`
python -m tests.transfer.peer decode KIND     says its offer, opens every transfer it is told
"""

import sys
import threading

import torch

from kv_transfer.base import Link, TransferId, Write
from kv_transfer.peer_process import own_process_id
from tests.transfer.worlds import BIG, make_decode, make_sender, random_pool, send

TRANSFER = TransferId("streamed", 0)
BLOCKS = list(range(BIG.num_blocks // 2))  # the other half must stay as it is


def prefill(kind: str) -> None:
    link = make_sender(kind, random_pool(BIG)).connect(bytes.fromhex(input()))
    link.open(TRANSFER, BLOCKS)
    process = own_process_id()
    say(f"connected {process.pid} {process.start_ticks}")
    for line in sys.stdin:
        match line.split():
            case ["stream"]:
                threading.Thread(target=stream, args=(link,), daemon=True).start()
            case ["write"]:
                sums = send(link, TRANSFER, BIG.num_layers, BLOCKS, BLOCKS)
                say(" ".join(map(str, sums)))
            case ["fence"]:
                link.fence(TRANSFER)
                say("fenced")
    link.close()


def stream(link: Link) -> None:
    """Keeps the link busy, so that whatever happens to this process happens in the middle of a write."""
    layer = 0
    writes = [link.write(TRANSFER, Write(0, BLOCKS, BLOCKS))]
    while True:
        layer = (layer + 1) % BIG.num_layers
        writes.append(link.write(TRANSFER, Write(layer, BLOCKS, BLOCKS)))
        if error := writes.pop(0).exception():
            say(f"ended {type(error).__name__}")
            return


def decode(kind: str) -> None:
    receiver = make_decode(kind, BIG).receiver
    receiver.open(TRANSFER, BLOCKS)
    say(receiver.offer().hex())
    sys.stdin.read()
    receiver.close()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")  # in one piece: two threads speak
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[2] == "cuda_ipc":
        torch.set_default_device("cuda")
    {"prefill": prefill, "decode": decode}[sys.argv[1]](sys.argv[2])
