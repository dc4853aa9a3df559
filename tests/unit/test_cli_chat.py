"""`baton chat` from a pipe: what the model is told, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result

from baton.cli.main import main
from baton.errors import Overloaded
from tests.fake_cluster import FakeCluster


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def chat(cluster: FakeCluster, stdin: str, *arguments: str) -> Result:
    words = ["chat", "--max-tokens", "2", "--seed", "40", *arguments]
    return CliRunner().invoke(main, words, input=stdin, env={"BATON_ADDRESS": cluster.address})


def told(cluster: FakeCluster) -> list[list[tuple[str, str]]]:
    """The messages of each request."""
    return [
        [(message.role, message.content) for message in request.chat.messages]
        for request in cluster.inference.requests
    ]


ANSWER = ("assistant", "40 41 ")


def test_the_model_is_told_the_whole_conversation(cluster: FakeCluster) -> None:
    result = chat(cluster, "one\n\ntwo\n")
    assert result.exit_code == 0
    assert result.stdout == "40 41 \n40 41 \n"
    assert told(cluster) == [
        [("user", "one")],
        [("user", "one"), ANSWER, ("user", "two")],
    ]


def test_the_system_message_comes_first_and_may_change(cluster: FakeCluster) -> None:
    chat(cluster, "one\n/system be brief\ntwo\n/system\nthree\n", "--system", "be kind")
    first, second, third = told(cluster)
    assert first == [("system", "be kind"), ("user", "one")]
    assert second == [("system", "be brief"), ("user", "one"), ANSWER, ("user", "two")]
    assert third[0] == ("user", "one")


def test_reset_and_quit(cluster: FakeCluster) -> None:
    result = chat(cluster, "one\n/reset\ntwo\n/quit\nthree\n")
    assert result.exit_code == 0
    assert told(cluster) == [[("user", "one")], [("user", "two")]]


def test_an_unknown_command_is_answered_with_help_not_sent(cluster: FakeCluster) -> None:
    result = chat(cluster, "/rest\n")
    assert told(cluster) == []
    assert "there is no /rest" in result.stderr
    assert "/reset" in result.stderr


def test_json(cluster: FakeCluster) -> None:
    result = chat(cluster, "one\n", "--system", "be kind", "--json")
    answer = json.loads(result.stdout)
    assert [message["role"] for message in answer["messages"]] == ["system", "user", "assistant"]
    assert answer["messages"][-1]["content"] == "40 41 "
    assert answer["answers"][0]["usage"]["num_output_tokens"] == 2


def test_a_script_is_stopped_by_a_failed_turn(cluster: FakeCluster) -> None:
    cluster.inference.refuse = Overloaded("full")
    result = chat(cluster, "one\ntwo\n")
    assert result.exit_code == 1
    assert result.stderr == "error: full\n"
    assert len(cluster.inference.requests) == 1
