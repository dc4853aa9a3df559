"""What a start waits for is said in words, and not too often."""

from __future__ import annotations

from dataclasses import replace

from baton.cluster.reconcile import Instance, Phase
from baton.cluster.waiting import Seen, Teller, missing, summed_up
from baton.errors import Unavailable
from baton.state.base import Member
from tests.reports import report

NAMES = ("router-0", "prefill-0", "decode-0")
ROUTER = "192.0.2.7:50051"


def running(name: str, pid: int = 7) -> Instance:
    return Instance(name, Phase.RUNNING, 0.0, pid=pid)


def member(name: str, pid: int = 7, connected: bool = True) -> Member:
    said = report(name)
    return Member(replace(said.info, pid=pid), said.loads, False, 5.0, connected=connected)


def test_phases_in_words() -> None:
    known = {
        "router-0": Instance("router-0", Phase.STARTING, 0.0),
        "prefill-0": Instance("prefill-0", Phase.STARTING, 0.0, pid=12),
        "decode-0": Instance("decode-0", Phase.ENDED, 0.0, error=Unavailable("exit code 3")),
        "decode-1": running("decode-1"),
    }
    assert list(missing((*NAMES, "prefill-1"), Seen(known, {}))) == [
        "router-0 to get a process",
        "prefill-0 (process 12) to say that it serves",
        "decode-0 to be started again (exit code 3)",
        "prefill-1 to be started",
        "decode-1 to leave",
    ]


def test_routers_that_do_not_know_their_workers() -> None:
    known = {name: running(name) for name in NAMES}
    there = [member("prefill-0"), member("decode-0")]

    def at(members: list[Member] | None) -> list[str]:
        return list(missing(NAMES, Seen(known, {ROUTER: members})))

    assert at(there) == []
    assert at(None) == [f"the router at {ROUTER} to answer"]
    assert at(there[:1]) == [f"decode-0 to register with the router at {ROUTER}"]
    assert at([there[0], member("decode-0", pid=6)]) == at(there[:1])
    assert at([*there, member("decode-1")]) == [f"the router at {ROUTER} to forget decode-1"]
    assert at([there[0], member("decode-0", connected=False)]) == [
        f"the router at {ROUTER} to connect to decode-0"
    ]


def test_it_is_told_when_it_lasts_or_changes() -> None:
    teller = Teller(since_s=100.0)
    told_s = [now_s for now_s in range(100, 140) if teller.line(["a to start"], now_s)]
    assert told_s == [102, 106, 114, 130]
    assert teller.line(["b to start"], 131) is None
    assert teller.line(["b to start"], 132) == "waiting for b to start"


def test_many_are_summed_up() -> None:
    assert summed_up([f"w{i}" for i in range(9)]) == "w0; w1; w2; w3; and 5 more"
