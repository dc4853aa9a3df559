"""`baton chat`: a conversation; line editing on a terminal, plain lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from baton.cli.generate import sampling_options
from baton.cli.options import address_option, json_option
from baton.errors import BatonError

if TYPE_CHECKING:
    from baton.client.sync_client import Client, Stream

_HELP = """\
/system TEXT  say how the model should behave (empty: no longer)
/reset        forget the conversation
/quit         leave (so does Ctrl-D)
Ctrl-C        stops an answer"""


@dataclass(slots=True)
class Conversation:
    """What has been said. The model sees the system message first, whenever it was given."""

    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def command(self, line: str) -> str:
        """Does what a line that begins with / asks for; what to answer to it."""
        name, _, argument = line.partition(" ")
        match name:
            case "/reset":
                self.turns.clear()
                return "forgotten"
            case "/system":
                self.system = argument.strip()
                return "noted" if self.system else "no system message"
            case "/help":
                return _HELP
            case _:
                return f"there is no {name}\n{_HELP}"


@dataclass(frozen=True, slots=True)
class _Chat:
    client: Client
    conversation: Conversation
    options: dict[str, Any]
    as_json: bool
    interactive: bool
    answers: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        from baton.cli.output import chrome, print_json

        for line in _lines(self.interactive):
            if line == "/quit":
                break
            if line.startswith("/"):
                chrome().print(self.conversation.command(line), style="dim", markup=False)
            elif line.strip():
                self._turn(line)
        if self.as_json:
            print_json({"messages": self.conversation.messages(), "answers": self.answers})

    def _turn(self, line: str) -> None:
        """A failed turn is as if it had not been said; a person may go on after it, a script is
        stopped."""
        turns = self.conversation.turns
        turns.append({"role": "user", "content": line})
        try:
            turns.append({"role": "assistant", "content": self._answer()})
        except BatonError as error:
            turns.pop()
            if not self.interactive:
                raise
            click.secho(f"error: {error}", fg="red", err=True)

    def _answer(self) -> str:
        from baton.cli.output import chrome, write_text

        texts: list[str] = []
        stream = self.client.stream(self.conversation.messages(), **self.options)
        with stream:
            try:
                for delta in stream:
                    texts.append(delta.text)
                    if not self.as_json:
                        write_text(delta.text)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                chrome().print(" stopped", style="dim", end="")
        if not self.as_json:
            write_text("\n")
        self._remark(stream)
        return "".join(texts)

    def _remark(self, stream: Stream) -> None:
        """One dim line under an answer that ended by itself."""
        from baton.cli.output import SEPARATOR, chrome, count, milliseconds
        from baton.cli.timeline import timeline_json

        if stream.usage is None or stream.timeline is None:
            return
        self.answers.append({"usage": stream.usage, "timeline": timeline_json(stream.timeline)})
        usage, events = stream.usage, stream.timeline.events
        parts = [count(usage.num_output_tokens, "token")]
        if "first_token" in events:
            parts.append(f"first after {milliseconds(events['first_token'])}")
            parts.append(f"{usage.num_cached_tokens:,} of {usage.num_prompt_tokens:,} cached")
        if self.interactive:
            chrome().print(SEPARATOR.join(parts), style="dim")


def _lines(interactive: bool) -> Iterator[str]:
    """What is said, until the end of the input."""
    if not interactive:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  # input() then edits lines and remembers them

    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo(err=True)
            return


@click.command()
@click.option("--system", default="", metavar="TEXT", help="How the model should behave.")
@click.option("--model", default="", help="Needed where the router serves several.")
@sampling_options
@address_option
@json_option
def chat(system: str, addresses: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Talk with a model, turn by turn.

    On a terminal, /help lists what can be said to Baton itself. From a pipe, every line is a turn.
    """
    from baton.cli.connect import connected
    from baton.cli.output import chrome

    interactive = sys.stdin.isatty() and not as_json
    with connected(addresses) as client:
        if interactive:
            names = [model.name for model in client.models()]
            chrome().print(f"{options['model'] or ', '.join(names)} · /help", style="dim")
        _Chat(client, Conversation(system), options, as_json, interactive).run()
