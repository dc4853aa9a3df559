"""`baton generate`: one prompt, streamed. The text alone goes to stdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import click

from baton.cli.options import address_option, json_option

if TYPE_CHECKING:
    from baton.client.results import Delta, Generation
    from baton.client.sync_client import Client
    from baton.types import PositionLogprobs


class _TokenIds(click.ParamType[list[int]]):
    name = "ids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        try:
            return [int(word) for word in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list such as 1,2,3", param, ctx)


def sampling_options(command: Any) -> Any:
    """Sampling, by the names that the SDK has for it. What is left out is the model's default."""
    for option in (
        click.option("--ignore-eos", is_flag=True, default=None, help="Go on to --max-tokens."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before it; repeatable."),
        click.option("--seed", type=int, help="The same seed gives the same text."),
        click.option("--top-k", type=int, help="Draw from the K likeliest tokens; 0: all."),
        click.option("--top-p", type=float, help="Draw from the likeliest tokens that sum to P."),
        click.option("--temperature", type=float, help="0 is greedy."),
        click.option("--max-tokens", type=int, help="Most tokens to generate."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("prompt", required=False)
@click.option("--file", type=click.File(encoding="utf-8"), help="Read the prompt; - is stdin.")
@click.option("--token-ids", type=_TokenIds(), metavar="1,2,3", help="The prompt as token ids.")
@click.option("--model", default="", help="Needed where the router serves several.")
@sampling_options
@click.option("--n", type=int, help="Samples of the one prompt.")
@click.option("--logprobs", type=int, metavar="K", help="Log-probabilities, with K alternatives.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Give up after it.")
@address_option
@json_option
def generate(
    prompt: str | None,
    file: IO[str] | None,
    token_ids: list[int] | None,
    addresses: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Continue PROMPT: the text as it comes, then where the time went.

    The model's own generation settings hold for every option that is left out.
    """
    from baton.cli.connect import connected

    given = _one_prompt(prompt, file, token_ids)
    with connected(addresses) as client:
        if as_json:
            _print_json(client.generate(given, **options))
        else:
            _stream(client, given, options)


def _one_prompt(
    prompt: str | None, file: IO[str] | None, token_ids: list[int] | None
) -> str | list[int]:
    if sum(source is not None for source in (prompt, file, token_ids)) != 1:
        raise click.UsageError("give one of PROMPT, --file and --token-ids")
    if token_ids is not None:
        return token_ids
    try:
        return prompt if prompt is not None else file.read() if file else ""
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"is not UTF-8: {error}", param_hint="--file") from error


def _print_json(generation: Generation) -> None:
    from baton.cli.output import jsonable, print_json
    from baton.cli.timeline import timeline_json

    shown: dict[str, Any] = {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "usage": generation.usage,
        "timeline": timeline_json(generation.timeline),
        "request_id": generation.request_id,
        "model": generation.model,
        "seed": generation.seed,
    }
    if generation.logprobs:
        shown["logprobs"] = generation.logprobs
    if len(generation.samples) > 1:
        shown["samples"] = generation.samples
    print_json(jsonable(shown))


@dataclass(slots=True)
class _Sample:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    ending: str = ""

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            matched = f" ({delta.stop!r})" if delta.stop else ""
            self.ending = delta.finish_reason.name.lower() + matched


def _stream(client: Client, prompt: str | list[int], options: dict[str, Any]) -> None:
    """The first sample as it comes; further ones, whose texts would interleave, after it."""
    from baton.cli.output import chrome, write_text
    from baton.cli.timeline import print_timeline

    samples: dict[int, _Sample] = {}
    with client.stream(prompt, **options) as stream:
        for delta in stream:
            samples.setdefault(delta.sample_index, _Sample()).add(delta)
            if delta.sample_index == 0:
                write_text(delta.text)
    ordered = [samples[index] for index in sorted(samples)]
    for sample in ordered[1:]:
        write_text("\n")
        chrome().rule(style="dim")
        write_text("".join(sample.texts))
    write_text("\n")
    console = chrome()
    console.print()
    for sample in ordered:
        _print_tokens(sample)
    endings = ", ".join(sample.ending for sample in ordered)
    if stream.usage is not None and stream.timeline is not None:
        print_timeline(console, stream.usage, stream.timeline, f"ended by {endings}")


def _print_tokens(sample: _Sample) -> None:
    """What is known of single tokens beside the text; where there is no text (a model without a
    tokenizer), the tokens themselves."""
    from baton.cli.output import chrome

    if sample.token_ids and not any(sample.texts):
        chrome().print("token ids", *sample.token_ids)
    if sample.logprobs:
        _print_logprobs(sample.logprobs)


def _print_logprobs(positions: Sequence[PositionLogprobs]) -> None:
    """Token ids, not texts: one character may be split over several tokens."""
    from baton.cli.output import chrome, plain_table

    table = plain_table()
    for heading in ("token", "logprob", "rank"):
        table.add_column(heading, justify="right")
    table.add_column("likeliest", style="dim")
    for position in positions:
        top = "  ".join(f"{token_id} {logprob:.3f}" for token_id, logprob in position.top)
        table.add_row(str(position.token_id), f"{position.logprob:.3f}", str(position.rank), top)
    chrome().print(table)
