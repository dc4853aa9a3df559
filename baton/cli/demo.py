"""`make demo`: a cluster on this machine, one prompt, where its time went, and nothing left behind.

    python -m baton.cli.demo

The same processes that `baton up` starts: a router, a prefill worker and a decode worker under a Ray of
their own. The prompt is computed on one worker and decoded on the other. Exits with 1, and with the ends
of their logs, where anything fails.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

from baton import Client
from baton.cli.output import chrome, console, write_text
from baton.cli.timeline import print_timeline
from baton.cluster.ray_cluster import RayCluster
from baton.cluster.spec import Settings, read
from baton.errors import BatonError, ConfigError, Internal

MODEL = Path(__file__).parents[2] / "demo" / "model"
MODEL_NAME = "shakespeare"
PROMPT = (Path(__file__).parents[2] / "demo" / "prompt.txt").read_text()
MAX_TOKENS = 160
SEED = 1

# So small a model prefills faster than a hand-off takes, and a router would rightly keep the prompt.
_ALWAYS_REMOTE = {"BATON_ROUTER_POLICY_LOCAL_PREFILL": "false"}

# In the environment of every process of the demo, and of whatever those start.
_MARK = "BATON_DEMO_RUN"


def main() -> int:
    """The exit code."""
    mark = uuid.uuid4().hex
    try:
        _run(mark)
        left = _left_running(mark)
        if left:
            raise Internal(f"still running: {', '.join(left)}")
    except BatonError as error:
        chrome().print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    console().print("shut down, nothing is left running", style="dim")
    return 0


def _run(mark: str) -> None:
    if not (MODEL / "config.json").exists():
        raise ConfigError("is missing; demo/train.py makes it", field=str(MODEL))
    out = console()
    out.print("starting a router, a prefill worker and a decode worker", style="dim")
    started_s = time.monotonic()
    workers = {"model": str(MODEL), "model_name": MODEL_NAME, "num_blocks": 256}
    spec = read(Settings(router={"grpc_port": 0, "http_port": 0}, workers=workers))
    with RayCluster(spec, environment={_MARK: mark, **_ALWAYS_REMOTE}) as cluster:
        for name, pid in cluster.pids.items():
            out.print(f"  {name:<9} process {pid}", style="dim")
        out.print(f"  gRPC      {cluster.address}\n  OpenAI    {cluster.base_url}\n", style="dim")
        try:
            _converse(cluster.address, started_s)
        except BatonError as error:
            raise Internal(f"{error}\n{cluster.logs()}") from error


def _converse(address: str, started_s: float) -> None:
    """One prompt over gRPC, as the SDK's users send it."""
    out = console()
    first_token_s: float | None = None
    with Client(address) as client:
        out.print(PROMPT, style="bold", end="")
        with client.stream(PROMPT, max_tokens=MAX_TOKENS, seed=SEED) as stream:
            for delta in stream:
                if first_token_s is None:
                    first_token_s = time.monotonic() - started_s
                write_text(delta.text)
    write_text("\n\n")
    if first_token_s is None or stream.usage is None or stream.timeline is None:
        raise Internal("the stream ended without a token")
    print_timeline(out, stream.usage, stream.timeline)
    hand_off = stream.timeline.hand_off
    if hand_off is None or not hand_off.transfer_bytes:
        raise Internal("the prompt was not handed over")
    out.print(f"\nfrom start to first token: {first_token_s:.1f} s")


def _left_running(mark: str) -> list[str]:
    """Processes that carry the demo's mark (Linux; elsewhere the cluster's own word must do)."""
    wanted = f"{_MARK}={mark}".encode()
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environ.read_bytes().split(b"\0"):
                left.append(f"process {environ.parent.name}")
        except OSError:
            continue  # it ended meanwhile, or is not ours to look at
    return left


if __name__ == "__main__":
    sys.exit(main())
