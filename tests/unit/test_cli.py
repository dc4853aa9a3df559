"""The command as a whole: its subcommands, what they load, how they fail."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import click
import pytest
from click.testing import CliRunner

import baton.cli.bench
from baton.cli.lazy import LazyCommand, LazyGroup
from baton.cli.main import main
from baton.errors import Overloaded
from tests.fake_cluster import FakeCluster

ROOT = Path(__file__).parents[2]
GROUPS = (main, baton.cli.bench.bench)
# Long-running processes: what they print are logs.
PROCESSES = {"up", "router", "worker"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for group in GROUPS:
        assert isinstance(group, LazyGroup)
        found += [(name, entry.load()) for name, entry in group.lazy_commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_is_what_it_is_called_and_has_help(name: str, command: click.Command) -> None:
    assert command.name == name
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert command.help


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_has_json(name: str, command: click.Command) -> None:
    if name in PROCESSES or isinstance(command, click.Group):
        return
    assert "--json" in {option for p in command.params for option in p.opts}


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in main.list_commands(click.Context(main)))


def loaded_after(*arguments: str) -> set[str]:
    code = (
        "import sys, baton.cli.main\n"
        "try: baton.cli.main.main(sys.argv[1:])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {name.partition(".")[0] for name in result.stderr.split()}


def test_help_loads_next_to_nothing() -> None:
    loaded = loaded_after("--help")
    assert "click" in loaded
    assert loaded & {"grpc", "google", "rich", "asyncio", "torch"} == set()


def test_generate_loads_only_what_a_client_needs(cluster: FakeCluster) -> None:
    loaded = loaded_after("generate", "x", "--max-tokens", "2", "--address", cluster.address)
    assert "grpc" in loaded
    assert loaded & {"torch", "numpy", "ray", "starlette", "uvicorn", "tokenizers"} == set()


def test_an_error_is_one_line_that_names_the_field(cluster: FakeCluster) -> None:
    result = CliRunner().invoke(main, ["drain", "nobody", "--address", cluster.address])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: worker_id: no worker is called 'nobody'\n"


def test_an_error_in_json(cluster: FakeCluster) -> None:
    result = CliRunner().invoke(main, ["drain", "nobody", "--json", "--address", cluster.address])
    assert result.exit_code == 1
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert (error["code"], error["field"]) == ("not_found", "worker_id")


def test_a_refusal_tells_when_to_come_back(cluster: FakeCluster) -> None:
    cluster.inference.refuse = Overloaded("full", retry_after_s=1.5)
    try:
        result = CliRunner().invoke(main, ["generate", "x", "--address", cluster.address])
    finally:
        cluster.inference.refuse = None
    assert result.exit_code == 1
    assert result.stderr == "error: full (retry after 1.5 s)\n"


def test_nobody_listens() -> None:
    result = CliRunner().invoke(main, ["status", "--address", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "no router answers at 127.0.0.1:1" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["drain"], ["generate", "x", "--n", "many"]])
def test_wrong_usage(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("wrong", "right"), [(["generat"], "generate"), (["bench", "serv"], "serve")]
)
def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(
    wrong: list[str], right: str
) -> None:
    result = CliRunner().invoke(main, wrong)
    assert result.exit_code == 2
    assert f"Did you mean '{right}'?" in result.stderr


@click.command()
def needs_torch() -> None:
    import torch  # noqa: F401


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(LazyCommand, "load", lambda _: needs_torch)
    result = CliRunner().invoke(main, ["worker"])
    assert result.exit_code == 1
    assert "pip install 'baton-serving[worker]'" in result.stderr


def test_ctrl_c_cancels_the_request_and_exits_130() -> None:
    with FakeCluster() as cluster:
        cluster.inference.pause_s = 0.01
        command = [
            sys.executable,
            "-m",
            "baton.cli.main",
            "generate",
            "x",
            "--max-tokens",
            "100000",
        ]
        environment = {**os.environ, "BATON_ADDRESS": cluster.address}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.read(1)  # it streams
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (130, b"")
        cluster.wait(cluster.inference.cancelled)


class Terminal:
    """A command on a terminal, with what it has shown so far."""

    def __init__(self, cluster: FakeCluster, *arguments: str) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "baton.cli.main", *arguments],
            cwd=ROOT,
            env={**os.environ, "BATON_ADDRESS": cluster.address, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._unread = b""

    def wait_for(self, wanted: bytes) -> None:
        while wanted not in self._unread:
            ready, _, _ = select.select([self._fd], [], [], 10)
            assert ready, f"waited for {wanted!r}, got {self._unread!r}"
            self._unread += os.read(self._fd, 1024)
        self._unread = self._unread.partition(wanted)[2]

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


def test_ctrl_c_stops_an_answer_but_not_the_conversation() -> None:
    with FakeCluster() as cluster:
        cluster.inference.pause_s = 0.01
        with Terminal(cluster, "chat", "--max-tokens", "100000") as terminal:
            terminal.wait_for(b"> ")
            terminal.type("hello")
            terminal.wait_for(b"10 11 12 ")
            terminal.process.send_signal(signal.SIGINT)
            terminal.wait_for(b"stopped")
            cluster.wait(cluster.inference.cancelled)
            terminal.wait_for(b"> ")
            terminal.type("/quit")
            assert terminal.process.wait(10) == 0


def test_q_ends_the_full_screen() -> None:
    with FakeCluster() as cluster, Terminal(cluster, "top") as terminal:
        terminal.wait_for(b"output tokens/s")  # from the second look on
        terminal.press(b"xq")
        assert terminal.process.wait(10) == 0


def test_ctrl_c_ends_the_full_screen() -> None:
    with FakeCluster() as cluster, Terminal(cluster, "top") as terminal:
        terminal.wait_for(b"request-1")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 130
