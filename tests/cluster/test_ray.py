"""A cluster under a real private Ray: what dies comes back, streams go on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from baton import AsyncClient, Client
from baton.cluster.process import free_port
from baton.cluster.ray_cluster import RayCluster
from baton.cluster.reconcile import Limits
from baton.cluster.spec import Settings, read
from baton.state.base import Member
from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[2]
MARK = "BATON_TEST_RUN"
NUM_STREAMS, NUM_NEW = 6, 300
PROMPTS = [[7, seed, 11, 13] for seed in range(NUM_STREAMS)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("ray") / "model", "llama")


@pytest.fixture(scope="module")
def cluster(checkpoint: Path) -> Iterator[RayCluster]:
    settings = Settings(
        workers={"model": str(checkpoint), "deterministic": True, "num_blocks": 200},
        router={"grpc_port": 0, "http_port": 0},
    )
    spec = read(settings, num_prefill_workers=0, num_decode_workers=2)
    with RayCluster(spec, limits=Limits(silent_s=2.0)) as started:
        yield started


@pytest.fixture(scope="module")
def references(cluster: RayCluster) -> list[tuple[int, ...]]:
    """Every stream's tokens when it runs alone."""
    with Client(cluster.address) as client:
        return [
            tuple(client.generate(prompt, max_tokens=NUM_NEW, seed=3, ignore_eos=True).token_ids)
            for prompt in PROMPTS
        ]


def workers(cluster: RayCluster) -> Mapping[str, Member]:
    with Client(cluster.address) as client:
        return {member.info.worker_id: member for member in client.workers()}


async def streams(
    cluster: RayCluster, at_some_token: Callable[[], None]
) -> tuple[list[tuple[int, ...]], int]:
    """All streams at once, and how often one went on elsewhere; calls back in the middle of them."""
    first_done = asyncio.Event()

    async def follow(client: AsyncClient, index: int) -> tuple[tuple[int, ...], int]:
        tokens: list[int] = []
        options: Any = {"max_tokens": NUM_NEW, "seed": 3, "ignore_eos": True}
        async with client.stream(PROMPTS[index], **options) as stream:
            async for delta in stream:
                tokens += delta.token_ids
                if len(tokens) >= NUM_NEW // 5 and not first_done.is_set():
                    first_done.set()
                    at_some_token()
        assert stream.timeline is not None
        return tuple(tokens), stream.timeline.num_attempts

    async with AsyncClient(cluster.address) as client:
        followed = await asyncio.gather(*(follow(client, i) for i in range(NUM_STREAMS)))
    return [tokens for tokens, _ in followed], sum(attempts > 1 for _, attempts in followed)


def test_a_killed_worker_comes_back_and_its_streams_go_on_exactly(
    cluster: RayCluster, references: list[tuple[int, ...]]
) -> None:
    before = workers(cluster)
    killed_s = 0.0

    def kill() -> None:
        nonlocal killed_s
        killed_s = time.monotonic()
        cluster.kill_worker("decode-0")

    tokens, num_continued = asyncio.run(streams(cluster, kill))
    assert tokens == references
    assert num_continued > 0
    cluster.wait_ready()
    print(f"\nworker back after {time.monotonic() - killed_s:.1f} s")
    after = workers(cluster)
    assert after.keys() == before.keys() == {"decode-0", "decode-1"}
    assert after["decode-0"].info.incarnation > before["decode-0"].info.incarnation
    assert after["decode-0"].info.pid != before["decode-0"].info.pid
    assert after["decode-1"].info == before["decode-1"].info


def test_a_stopped_worker_is_killed_and_replaced(cluster: RayCluster) -> None:
    """SIGSTOP: alive to the kernel and to Ray, but it does not answer."""
    stopped = cluster.worker_pids["decode-1"]
    cluster.kill_worker("decode-1", signal.SIGSTOP)
    wait_until(lambda: not Path(f"/proc/{stopped}").exists())
    cluster.wait_ready()
    assert cluster.worker_pids["decode-1"] != stopped


def test_a_killed_router_comes_back_where_it_was(
    cluster: RayCluster, references: list[tuple[int, ...]]
) -> None:
    pids = cluster.pids
    cluster.kill_worker("router-0")
    wait_until(lambda: cluster.pids.get("router-0", pids["router-0"]) != pids["router-0"])
    cluster.wait_ready()
    assert {name for name in pids if cluster.pids[name] != pids[name]} == {"router-0"}
    tokens, _ = asyncio.run(streams(cluster, lambda: None))
    assert tokens == references


def test_streams_go_on_and_workers_come_back_when_ray_dies(
    cluster: RayCluster, references: list[tuple[int, ...]]
) -> None:
    """First its raylet, then its control store: neither is needed to serve, both to start a worker."""
    for part in ("raylet", "gcs_server"):
        before = cluster.worker_pids
        tokens, num_continued = asyncio.run(streams(cluster, lambda: kill_of_ray(cluster, part)))  # noqa: B023
        assert (tokens, num_continued) == (references, 0)
        assert cluster.worker_pids == before
        cluster.kill_worker("decode-0")
        wait_until(lambda: cluster.worker_pids.get("decode-0", 0) not in (0, before["decode-0"]))  # noqa: B023
        cluster.wait_ready()
        assert cluster.worker_pids["decode-1"] == before["decode-1"]


def kill_of_ray(cluster: RayCluster, part: str) -> None:
    folder = folder_of(cluster.worker_pids["decode-1"])
    [found] = [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (words := command_line(process)) and Path(words[0]).name == part
        if any(str(folder) in word for word in words)
    ]
    os.kill(found, signal.SIGKILL)


def command_line(process: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_text().split("\0")
    return []


def test_scaling_down_drains_and_streams_go_on(
    cluster: RayCluster, references: list[tuple[int, ...]]
) -> None:
    leaving = cluster.worker_pids["decode-1"]
    tokens, _ = asyncio.run(streams(cluster, lambda: cluster.scale(num_decode_workers=1)))
    assert tokens == references
    cluster.wait_ready()
    assert list(workers(cluster)) == ["decode-0"]
    wait_until(lambda: not Path(f"/proc/{leaving}").exists())
    cluster.scale(num_decode_workers=2)
    cluster.wait_ready()
    assert set(workers(cluster)) == {"decode-0", "decode-1"}


# `baton up` as a process of its own


@dataclass
class Up:
    """A run of `baton up`; all it starts carries its mark."""

    process: subprocess.Popen[str]
    mark: str
    errors: IO[str]

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}: {self.said()}"
        described: dict[str, Any] = json.loads(line)
        assert "error" not in described, self.said()
        return described

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def left(self) -> list[str]:
        """Command lines of all that still runs."""
        return [" ".join(command_line(process)) for process in marked(self.mark)]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str, **environment: str) -> Up:
        mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "baton.cli.main", "up", "--json", "--num-blocks", "50"]
        command += ["--grpc-port", "0", "--http-port", "0", *options]
        errors = (tmp_path / f"{mark}.log").open("w+")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, MARK: mark, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        started.append(Up(process, mark, errors))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()
        each.errors.close()


def marked(mark: str) -> list[Path]:
    """Folders in /proc of the processes that carry the mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder)
    return found


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "not in time"
        time.sleep(0.05)


def folder_of(pid: int) -> Path:
    """Of the cluster that this process belongs to."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    [found] = [each for each in variables if each.startswith(b"BATON_CLUSTER=")]
    return Path(found.decode().partition("=")[2])


def test_up_leaves_nothing_behind(up: Callable[..., Up], checkpoint: Path) -> None:
    started = up("--model", str(checkpoint))
    described = started.ready()
    assert set(described["workers"]) == {"prefill-0", "decode-0"}
    folder = folder_of(described["workers"]["decode-0"])
    assert folder.exists()
    with Client(described["address"]) as client:
        assert len(client.generate([1, 2, 3], max_tokens=5).token_ids) == 5
    os.killpg(started.process.pid, signal.SIGTERM)  # as whoever ends a group of processes
    assert started.process.wait(30) == 0, started.said()
    assert "killed" not in started.said(), "all leave in order"
    assert started.left() == []
    assert not folder.exists()
    assert started.process.stdout is not None
    assert started.process.stdout.read() == "", "stdout is the JSON line's alone"


def test_up_that_is_killed_leaves_nothing_either(up: Callable[..., Up], checkpoint: Path) -> None:
    started = up("--model", str(checkpoint), "--no-prefill-workers")
    described = started.ready()
    assert list(described["workers"]) == ["decode-0"]
    folder = folder_of(described["workers"]["decode-0"])
    started.process.kill()
    wait_until(lambda: not started.left())
    assert not folder.exists()


def test_up_that_cannot_start_says_why_and_leaves_nothing(
    up: Callable[..., Up], tmp_path: Path
) -> None:
    failed = up("--model", str(tmp_path / "none"))
    assert failed.process.wait(60) == 1
    assert failed.process.stdout is not None
    error = json.loads(failed.process.stdout.read().splitlines()[-1])["error"]
    assert error["code"] == "config"
    assert "none" in error["message"] + error["field"]
    assert "Traceback" not in failed.said()
    assert failed.left() == []


@dataclass(frozen=True)
class Head:
    """A Ray cluster that is not ours, on the machine's own address as a user's is."""

    port: int
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(f"/tmp/baton-test-{os.getpid()}")
    port, mark = free_port(), uuid.uuid4().hex
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
    command += ["--num-cpus=64", f"--temp-dir={folder}", "--include-dashboard=false"]
    command += ["--disable-usage-stats", "--block"]
    started = subprocess.Popen(
        command,
        env={**os.environ, **environment, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Head(port, environment)
    finally:
        started.terminate()
        started.wait(30)
        for process in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_on_a_joined_ray_workers_outlive_their_controller(
    up: Callable[..., Up], checkpoint: Path, head: Head
) -> None:
    """The next one takes them over where they are, and drains the one that it does not want."""
    ports = ("--grpc-port", str(free_port("0.0.0.0")), "--http-port", str(free_port("0.0.0.0")))
    joined = ("--address", f"127.0.0.1:{head.port}", "--no-prefill-workers")
    options = ("--model", str(checkpoint), *joined, *ports)
    wait_until(lambda: is_listening(head.port))
    first = up(*options, "--decode-workers", "2", **head.environment)
    pids = first.ready()["workers"]
    first.process.kill()
    wait_until(lambda: not first.left())  # its router, that is
    assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())
    second = up(*options, "--decode-workers", "1", "--host", "0.0.0.0", **head.environment)
    described = second.ready()
    assert described["workers"]["decode-0"] == pids["decode-0"]
    with Client(described["address"]) as client:
        assert len(client.generate([1, 2, 3], max_tokens=5).token_ids) == 5
    wait_until(lambda: not Path(f"/proc/{pids['decode-1']}").exists())
    second.process.terminate()
    assert second.process.wait(30) == 0, second.said()
    wait_until(lambda: not Path(f"/proc/{pids['decode-0']}").exists())
