"""Renders a conversation with the model's chat template, in a sandbox.

The environment is the one that Hugging Face templates are written for: trimmed blocks, loop
controls, `raise_exception`, `strftime_now`, a `tojson` that keeps text readable, and the
`generation` block (which marks assistant turns for training and renders its body).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.errors import ConfigError, InvalidArgument
from router.request import Message


class _GenerationBlock(Extension):
    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(fmt: str) -> str:
    return datetime.now().strftime(fmt)  # local time, as templates expect


def _tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's own escapes HTML


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


# What expressions of a template raise over values that it was not written for.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
)


class ChatTemplate:
    """`special_tokens`: the names that a template may use (`bos_token` ...) and their texts."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, file: str) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ConfigError(f"the chat template does not parse: {error}", field=file) from error

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation with the opening of the assistant's next turn. A template refuses what
        it was not written for (a role, an order of roles): that is the messages' fault."""
        turns = [_turn(message) for message in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except RecursionError as error:
            raise InvalidArgument(
                "the model's chat template calls itself without an end on them",
                field="chat.messages",
            ) from error
        except _TEMPLATE_ERRORS as error:
            raise InvalidArgument(
                f"the model's chat template refuses them: {error}", field="chat.messages"
            ) from error


# What newer OpenAI models call the system's role; templates know only `system`.
_ROLES = {"developer": "system"}


def _turn(message: Message) -> dict[str, str]:
    turn = {"role": _ROLES.get(message.role, message.role), "content": message.content}
    return turn | {"name": message.name} if message.name else turn
