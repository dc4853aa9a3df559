"""What OpenAI's API has and Baton does not serve.

Three classes of fields. Those that do not change the answer are ignored. Those that would change it
are refused, unless they hold the value that asks for nothing. Unknown ones are refused, as OpenAI
does: a misspelt `temperature` must not go unnoticed.
"""

from __future__ import annotations

from typing import Any

from baton.errors import InvalidArgument
from router.http.fields import Fields

_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",  # says how tools are called; without tools, nothing
        "prediction",  # a hint for speed
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Field -> the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


def refuse_unserved(fields: Fields) -> None:
    """Looks at what is left of a body once every field that is served was taken."""
    for name, value in fields.left():
        if name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise InvalidArgument("unknown field", field=fields.name(name))
        if not any(value == neutral and type(value) is type(neutral) for neutral in _NEUTRAL[name]):
            raise InvalidArgument("not supported by this server", field=fields.name(name))
