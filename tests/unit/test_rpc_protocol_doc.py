"""docs/protocol.md against the code it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from baton.errors import STATUS, BatonError
from baton.v1 import admin_pb2, decode_pb2, inference_pb2, prefill_pb2, worker_pb2

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
FILES = [admin_pb2, decode_pb2, inference_pb2, prefill_pb2, worker_pb2]


def test_table_of_errors_is_that_of_the_code() -> None:
    table = DOC.split("<!-- errors:")[1].split("<!-- end of errors -->")[0]
    documented = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\w+) \| (\d+) \|$", table, re.MULTILINE)
    assert documented == [
        (kind.__name__, status.code, status.grpc, str(status.http))
        for kind, status in STATUS.items()
        if kind is not BatonError
    ]


def test_every_service_is_listed() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \| .* \| `\w+\.proto` \|$", DOC, re.MULTILINE))
    assert listed == {name for file in FILES for name in file.DESCRIPTOR.services_by_name}


@pytest.mark.parametrize(
    "name",
    [
        "request_id",
        "attempt",
        "pool",
        "incarnation",
        "sample_index",
        "num_prompt_tokens",
        "output_token_ids",
        "tenant",
        "salt",
        "priority",
        "timeout_s",
        "traceparent",
    ],
)
def test_fixed_fields_are_explained_and_on_the_wire(name: str) -> None:
    assert f"**{name}**" in DOC
    messages = [m for file in FILES for m in file.DESCRIPTOR.message_types_by_name.values()]
    assert any(name in message.fields_by_name for message in messages)
