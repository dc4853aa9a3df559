"""What the load generator sends: lengths, arrivals, contents, traces."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from baton.bench import workload
from baton.bench.traces import read_trace
from baton.bench.workload import Lengths, PlannedRequest, prompt_text, prompt_token_ids
from baton.errors import ConfigError

MOONCAKE = [
    {"timestamp": 500, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 1500, "input_length": 700, "output_length": 0, "hash_ids": [0, 2]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.1805900,396,109
"""


def row(**fields: object) -> bytes:
    line = {"timestamp": 0, "input_length": 9, "output_length": 1, **fields}
    return json.dumps(line).encode()


@pytest.fixture
def mooncake(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, MOONCAKE)).encode()))
    return path


def test_synthetic_lengths_fill_their_range() -> None:
    requests = workload.synthetic(300, Lengths(3, 5), Lengths(7, 7), seed=1)
    assert {request.num_prompt_tokens for request in requests} == {3, 4, 5}
    assert {request.num_output_tokens for request in requests} == {7}
    assert {request.due_s for request in requests} == {None}
    assert requests == workload.synthetic(300, Lengths(3, 5), Lengths(7, 7), seed=1)
    assert requests != workload.synthetic(300, Lengths(3, 5), Lengths(7, 7), seed=2)


def test_poisson_arrivals() -> None:
    plain = workload.synthetic(4001, Lengths(1, 1), Lengths(1, 1), seed=1)
    due_s = [request.due_s or 0.0 for request in workload.poisson(plain, 50.0, seed=1)]
    assert due_s[0] == 0
    assert due_s == sorted(due_s)
    assert due_s[-1] == pytest.approx(4000 / 50, rel=0.05)
    gaps = sorted(after - before for before, after in pairwise(due_s))
    assert gaps[2000] == pytest.approx(0.693 / 50, rel=0.1)  # an exponential's median


def test_contents_are_of_the_wanted_length_and_repeatable() -> None:
    request = PlannedRequest(3, 100, 1)
    ids = prompt_token_ids(request, 50, seed=1)
    assert len(ids) == 100
    assert set(ids) <= set(range(50))
    assert len(set(ids)) > 20
    assert ids == prompt_token_ids(request, 50, seed=1)
    assert ids != prompt_token_ids(request, 50, seed=2)
    assert ids != prompt_token_ids(PlannedRequest(4, 100, 1), 50, seed=1)
    assert len(prompt_text(request, seed=1).split()) == 100


def test_mooncake(mooncake: Path) -> None:
    first, second = read_trace(mooncake)
    assert (first.num_prompt_tokens, first.num_output_tokens, first.due_s) == (1000, 5, 0.0)
    assert (second.num_prompt_tokens, second.num_output_tokens, second.due_s) == (700, 1, 1.0)
    ours, theirs = (prompt_token_ids(each, 1000, seed=1) for each in (first, second))
    assert ours[:512] == theirs[:512]
    assert ours[512:700] != theirs[512:]
    assert (len(ours), len(theirs)) == (1000, 700)


def test_azure(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    first, second = read_trace(path)
    assert (first.num_prompt_tokens, first.num_output_tokens, first.due_s) == (374, 44, 0.0)
    assert second.due_s == pytest.approx(1.5)
    assert len(read_trace(path, limit=1)) == 1
    assert [each.due_s for each in workload.sped_up([first, second], 3)] == pytest.approx([0, 0.5])


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "trace: holds no requests"),
        (b'{"timestamp": 0, "input_length": 3}\n', "trace:1: output_length: is missing"),
        (b'{"timestamp": 0, "input_length": "many", "output_length": 1}\n', "trace:1: input_len"),
        (b'{"timestamp": 0}\n{', "trace:1"),
        (b'{"timestamp": 0, "input_length": 1, "output_length": 1}\n{', "trace:2: is not JSON"),
        (
            b'{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}',
            "trace:1: hash_ids",
        ),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", "trace:2: TIMESTAMP: must be a"),
        (b"a,b\n1,2\n", "trace:2: ContextTokens: is missing"),
        (b"\xff\xfe\xfd", "trace: cannot be read"),
        (gzip.compress(AZURE.encode(), mtime=0)[:30], "trace: cannot be read"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", "GeneratedTokens"),
        (b'{"timestamp": 0, "input_length": 1e999, "output_length": 1}\n', "trace:1: input_length"),
        (
            b'{"timestamp": 0, "input_length": 1' + b"0" * 400 + b', "output_length": 1}',
            "input_len",
        ),
        (b'{"timestamp": ' + b"1" * 5000 + b"}", "trace:1: is not JSON"),
        (b'{"input_length": 1, "output_length": 1}', "trace:1: timestamp: is missing"),
        (row(input_length=-5), "trace:1: input_length: must be a whole number"),
        (row(output_length=1.5), "trace:1: output_length: must be a whole number"),
        (row(input_length=True), "trace:1: input_length: must be a number"),
        (row(input_length=1e9), "trace:1: input_length: must be a whole number from 0 to"),
        (row(hash_ids=[1, -1]), "trace:1: hash_ids: must be from 0 to 2^64 - 1, one is -1"),
        (row(hash_ids=[2**64]), "trace:1: hash_ids: must be from 0"),
        (row() + b"\n\n" + row(hash_ids=None), "trace:3: hash_ids: must be an array"),
        (AZURE.encode() + b"\r\n\r\nnever,1,1", "trace:6: TIMESTAMP"),
        (AZURE.encode() + b"\0,1,1", "TIMESTAMP"),
    ],
)
def test_traces_that_are_none(tmp_path: Path, content: bytes, where: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert where in str(caught.value)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, partial(gzip.compress, mtime=0)])
def test_how_a_file_was_saved_changes_nothing(
    tmp_path: Path, line_end: str, bom: bytes, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "trace"
    for lines in (list(map(json.dumps, MOONCAKE)), AZURE.splitlines()):
        path.write_text("\n".join(lines))
        plain = read_trace(path)
        saved = line_end.join([*lines, "", ""]).encode()
        path.write_bytes(pack(bom + saved))
        assert read_trace(path) == plain


def test_requests_arrive_by_their_times_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\n".join(row(timestamp=at, input_length=1 + at) for at in (2000, 0, 1000)))
    requests = read_trace(path)
    assert [(each.due_s, each.num_prompt_tokens) for each in requests] == [
        (0.0, 1),
        (1.0, 1001),
        (2.0, 2001),
    ]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_arrivals_are_the_same_in_every_time_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """Over the hour that New York's clocks skip."""
    path = tmp_path / "trace"
    times = ("2024-03-10 01:59:59", "2024-03-10 03:00:01", "2024-03-10T05:00:02+01:00")
    path.write_text(AZURE.splitlines()[0] + "".join(f"\n{time},1,1" for time in times))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert [each.due_s for each in read_trace(path)] == [0.0, 3602.0, 7203.0]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none")


@pytest.mark.parametrize(
    ("prompt", "output", "fitted"),
    [
        (10, 10, (10, 10)),
        (90, 10, (90, 10)),
        (95, 10, (90, 10)),  # a short output is kept whole
        (10, 200, (10, 90)),  # a long one takes what the prompt leaves
        (500, 200, (50, 50)),  # where both are too long, each has half
        (80, 60, (50, 50)),
    ],
)
def test_requests_are_shortened_to_the_model(
    prompt: int, output: int, fitted: tuple[int, int]
) -> None:
    (request,) = workload.fitted([PlannedRequest(0, prompt, output)], 100)
    assert (request.num_prompt_tokens, request.num_output_tokens) == fitted


DATA = Path(os.environ.get("BATON_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the published traces (BATON_DATA)")
def test_published_traces() -> None:
    chat = read_trace(DATA / "mooncake_conversation.jsonl.gz")
    assert len(chat) == 12_031
    assert {each.block_hashes[0] for each in chat} == {0}  # as the trace is known to be
    azure = read_trace(DATA / "AzureLLMInferenceTrace_conv.csv.gz", limit=100)
    assert len(azure) == 100
    assert (azure[0].num_prompt_tokens, azure[0].num_output_tokens) == (374, 44)
