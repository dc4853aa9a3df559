"""`baton generate` against a fake router: what reaches it, and what is printed where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from baton.cli.main import main
from tests.fake_cluster import FakeCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def generate(cluster: FakeCluster, *arguments: str, stdin: str | None = None) -> Result:
    environment = {"BATON_ADDRESS": cluster.address, "COLUMNS": "80"}
    return CliRunner().invoke(main, ["generate", *arguments], input=stdin, env=environment)


def test_the_text_alone_is_on_stdout(cluster: FakeCluster) -> None:
    result = generate(cluster, "hi", "--max-tokens", "3", "--seed", "40")
    assert result.exit_code == 0
    assert result.stdout == "40 41 42 \n"
    assert "3 prompt tokens (0 cached) · 3 output tokens · ended by length" in result.stderr
    assert "finished 500 ms" in result.stderr


def test_json(cluster: FakeCluster) -> None:
    result = generate(cluster, "hi", "--max-tokens", "3", "--seed", "40", "--json")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert answer["text"] == "40 41 42 "
    assert answer["token_ids"] == [40, 41, 42]
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {
        "num_prompt_tokens": 3,
        "num_cached_tokens": 0,
        "num_output_tokens": 3,
    }
    assert answer["timeline"]["events"] == {"received": 0.0, "finished": 0.5}
    assert answer["timeline"]["decode_worker"] == "d0"
    assert answer["seed"] == 40
    assert "samples" not in answer
    assert "logprobs" not in answer


def test_several_samples(cluster: FakeCluster) -> None:
    arguments = ("hi", "--max-tokens", "2", "--seed", "40", "--n", "2")
    assert generate(cluster, *arguments).stdout == "40 41 \n140 141 \n"
    answer = json.loads(generate(cluster, *arguments, "--json").stdout)
    assert [sample["token_ids"] for sample in answer["samples"]] == [[40, 41], [140, 141]]


def test_logprobs(cluster: FakeCluster) -> None:
    arguments = ("hi", "--max-tokens", "2", "--seed", "40", "--logprobs", "1")
    assert "41   -0.500     1  41 -0.500" in generate(cluster, *arguments).stderr
    answer = json.loads(generate(cluster, *arguments, "--json").stdout)
    assert [position["token_id"] for position in answer["logprobs"]] == [40, 41]


def test_every_option_reaches_the_router(cluster: FakeCluster) -> None:
    options = "--max-tokens 1 --temperature 0.5 --top-p 0.9 --top-k 7 --seed 3 --n 2 --logprobs 4"
    words = [*options.split(), "--ignore-eos", "--stop", "a", "--stop", "b c", "--model", "m"]
    assert generate(cluster, "hi", *words, "--timeout", "600").exit_code == 0
    request = cluster.inference.requests[-1]
    sampling = request.sampling
    assert (request.text, request.model) == ("hi", "m")
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.max_tokens, sampling.seed, sampling.n, sampling.logprobs) == (1, 3, 2, 4)
    assert list(sampling.stop) == ["a", "b c"]
    assert sampling.ignore_eos
    remaining_s = cluster.inference.deadlines_s[-1]
    assert remaining_s is not None
    assert 500 < remaining_s < 700


def test_what_is_left_out_is_left_to_the_model(cluster: FakeCluster) -> None:
    generate(cluster, "hi", "--max-tokens", "1")
    sampling = cluster.inference.requests[-1].sampling
    assert [field.name for field, _ in sampling.ListFields()] == ["max_tokens"]


def test_prompts_from_elsewhere(cluster: FakeCluster, tmp_path: Path) -> None:
    generate(cluster, "--token-ids", "5,6", "--max-tokens", "1")
    assert list(cluster.inference.requests[-1].token_ids.ids) == [5, 6]
    generate(cluster, "--file", "-", "--max-tokens", "1", stdin="piped\n")
    assert cluster.inference.requests[-1].text == "piped\n"
    file = tmp_path / "prompt.txt"
    file.write_text("müde", encoding="utf-8")
    generate(cluster, "--file", str(file), "--max-tokens", "1")
    assert cluster.inference.requests[-1].text == "müde"


def test_prompts_that_are_none(cluster: FakeCluster, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\xfd")
    wrong = [
        ([], "give one of PROMPT"),
        (["hi", "--token-ids", "1"], "give one of PROMPT"),
        (["--token-ids", "1,x"], "not a list such as"),
        (["--file", str(binary)], "is not UTF-8"),
        (["--file", str(tmp_path / "none")], "No such file"),
    ]
    num_requests = len(cluster.inference.requests)
    for arguments, message in wrong:
        result = generate(cluster, *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
    assert len(cluster.inference.requests) == num_requests


def test_an_option_no_message_can_hold(cluster: FakeCluster) -> None:
    result = generate(cluster, "hi", "--top-k", str(2**40))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: sampling.top_k: ")


def test_a_model_without_text_shows_its_tokens(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.inference, "has_text", False)
    result = generate(cluster, "--token-ids", "1", "--max-tokens", "3", "--seed", "40")
    assert result.stdout == "\n"
    assert "token ids 40 41 42\n" in result.stderr
