"""Between messages of baton.v1.Inference and the values of the front door."""

from __future__ import annotations

from baton.client import request as client_request
from router.grpc import wire
from router.request import Chat, Message


def test_a_conversation_keeps_its_names() -> None:
    turns = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hi", "name": "Ann"},
    ]
    asked = wire.generate_input(client_request.build(turns, {}), None)
    assert asked.prompt == Chat(
        (Message("developer", "be kind"), Message("user", "hi", name="Ann"))
    )
