"""`/v1/chat/completions`: its body, and its answers."""

from __future__ import annotations

from typing import Any

from baton.errors import InvalidArgument
from router.frontend import SampleDelta
from router.http.call import Call, Caller, read_call, read_sampling
from router.http.choices import Choice
from router.http.fields import Fields, as_string
from router.http.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from router.http.unserved import refuse_unserved
from router.request import Chat, Message

_ROLES = ("system", "developer", "user", "assistant")


def read_chat(body: dict[str, Any], caller: Caller) -> Call:
    fields = Fields(body)
    messages = fields.array("messages")
    if messages is None:
        raise InvalidArgument("is missing", field="messages")
    chat = Chat(tuple(_read_message(m, f"messages[{i}]") for i, m in enumerate(messages)))
    sampling = read_sampling(fields, max_tokens=_read_max(fields), logprobs=_read_logprobs(fields))
    call = read_call(fields, caller, [chat], sampling)
    refuse_unserved(fields)
    return call


def _read_max(fields: Fields) -> int | None:
    """The newer name, or the older one; both only if they agree."""
    newer, older = fields.integer("max_completion_tokens"), fields.integer("max_tokens")
    if newer is not None and older is not None and newer != older:
        raise InvalidArgument(
            f"is {newer}, but max_tokens is {older}", field="max_completion_tokens"
        )
    return older if newer is None else newer


def _read_logprobs(fields: Fields) -> int | None:
    wanted, num_top = fields.boolean("logprobs"), fields.integer("top_logprobs")
    if num_top is not None and not wanted:
        if num_top == 0:
            return None
        raise InvalidArgument("needs logprobs to be true", field="top_logprobs")
    return (num_top or 0) if wanted else None


def _read_message(value: Any, path: str) -> Message:
    fields = Fields(value, path)
    role = fields.string("role")
    if role not in _ROLES:
        allowed = ", ".join(_ROLES)
        raise InvalidArgument(f"must be one of {allowed}; is {role}", field=fields.name("role"))
    for name in ("tool_calls", "function_call", "audio"):
        if fields.any(name):
            raise InvalidArgument("not supported by this server", field=fields.name(name))
    content = fields.any("content")
    if content is None:
        raise InvalidArgument("is missing", field=fields.name("content"))
    return Message(
        role=role,
        content=_read_content(content, fields.name("content")),
        name=fields.string("name") or "",
    )


def _read_content(value: Any, path: str) -> str:
    """A string, or parts of type text, which are joined by line ends."""
    if isinstance(value, str):
        return as_string(value, path)
    if not isinstance(value, list):
        raise InvalidArgument("must be a string or an array of parts", field=path)
    texts: list[str] = []
    for index, part in enumerate(value):
        fields = Fields(part, f"{path}[{index}]")
        kind, text = fields.string("type"), fields.string("text")
        if kind != "text":
            raise InvalidArgument(
                f"only parts of type text are supported, this is {kind}", field=fields.name("type")
            )
        if text is None:
            raise InvalidArgument("is missing", field=fields.name("text"))
        texts.append(text)
    return "\n".join(texts)


class ChatAnswer:
    """Choices as a chat completion shows them."""

    id_prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, call: Call, names: TokenNames) -> None:
        self.token_names = names
        self._names = names if call.has_logprobs else None
        self._return_token_ids = call.return_token_ids
        self._opened: set[int] = set()

    def choice(self, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": chat_logprobs(choice.logprobs, self._names) if self._names else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        return shown | ({"token_ids": choice.token_ids} if self._return_token_ids else {})

    def delta(self, index: int, delta: SampleDelta, finish: dict[str, Any]) -> list[dict[str, Any]]:
        """One or, where the choice opens, two chunks' choices."""
        shown: dict[str, Any] = {
            "index": index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": chat_logprobs(delta.logprobs, self._names)
            if self._names and delta.logprobs
            else None,
            **finish,
        }
        if self._return_token_ids:
            shown["token_ids"] = delta.token_ids
        if index in self._opened:
            return [shown]
        self._opened.add(index)
        opening = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": opening, "logprobs": None, "finish_reason": None},
            shown,
        ]

    def beside_choices(self, choices: list[Choice]) -> dict[str, Any]:
        positions = choices[0].prompt_logprobs  # one prompt: the same for every choice
        if positions is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(positions, self.token_names)}
