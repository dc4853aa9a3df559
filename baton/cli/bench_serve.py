"""`baton bench serve`: the load generator's options."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baton.cli.options import address_option, json_option

if TYPE_CHECKING:
    from baton.bench.serve import LoadSettings
    from baton.bench.target import ServerSettings
    from baton.bench.workload import Lengths


class _LengthsType(click.ParamType["Lengths"]):
    name = "N or N-M"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Lengths:
        from baton.bench.workload import Lengths

        least, dash, most = str(value).partition("-")
        try:
            lengths = Lengths(int(least), int(most if dash else least))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor a range such as 64-512", param, ctx)
        if not 1 <= lengths.least <= lengths.most:
            self.fail(f"{value!r} must begin at 1 or above, and not run backwards", param, ctx)
        return lengths


_LENGTHS = _LengthsType()
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_PROTOCOLS = click.Choice(["grpc", "openai"])
_APIS = click.Choice(["completions", "chat"])

_SERVER_OPTIONS = (
    click.option("--protocol", type=_PROTOCOLS, default="grpc", show_default=True),
    address_option,
    click.option(
        "--base-url",
        default="http://127.0.0.1:8000/v1",
        show_default=True,
        help="An OpenAI-compatible server, Baton's or any other.",
    ),
    click.option(
        "--api", type=_APIS, default="completions", show_default=True, help="OpenAI's endpoint."
    ),
    click.option("--api-key", default="", envvar="OPENAI_API_KEY", show_envvar=True),
    click.option("--model", default="", help="Needed where the server has several."),
)
_LOAD_OPTIONS = (
    click.option(
        "--num-requests", "--limit", type=_COUNT, help="[default: 64, or the whole trace]"
    ),
    click.option(
        "--concurrency", type=_COUNT, help="Most in flight. [default: 8, or none for arrivals]"
    ),
    click.option("--rate", type=_POSITIVE, help="Poisson arrivals per second."),
    click.option("--prompt-tokens", type=_LENGTHS, default="128", show_default=True),
    click.option("--output-tokens", type=_LENGTHS, default="64", show_default=True),
    click.option(
        "--trace",
        type=click.Path(path_type=Path),
        help="Arrivals and lengths from Mooncake's JSONL or Azure's CSV, gzipped or not.",
    ),
    click.option("--speedup", type=_POSITIVE, help="Replay the trace this many times faster."),
    click.option(
        "--max-model-len",
        type=click.IntRange(min=2),
        help="Shorten longer requests to it. [default: what the server tells]",
    ),
    click.option(
        "--ignore-eos/--no-ignore-eos", default=True, help="Go on to the planned length, or not."
    ),
    click.option("--timeout", "timeout_s", type=_POSITIVE, metavar="SECONDS", help="Per request."),
    click.option(
        "--warmup",
        "num_warmup",
        type=click.IntRange(min=0),
        default=2,
        show_default=True,
        help="Requests before the run, which do not count.",
    ),
    click.option("--ttft-slo-ms", type=_POSITIVE, help="Goodput: requests with such a TTFT"),
    click.option("--itl-slo-ms", type=_POSITIVE, help="and such a mean gap between tokens."),
    click.option(
        "--seed", type=int, help="The same load again (which the server may have cached by now)."
    ),
)


def _options(command: Any) -> Any:
    for option in reversed((*_SERVER_OPTIONS, *_LOAD_OPTIONS)):
        command = option(command)
    return command


@click.command()
@_options
@json_option
def serve(as_json: bool, **options: Any) -> None:
    """Put load on a server that runs: latencies, throughput, goodput.

    Prompts are random token ids over gRPC, random words over OpenAI's protocol. TTFT counts from
    the instant a request is due. ITL has one value per token: where a message carries k tokens, the
    gap before it is divided by k. Exits with 1 when no request succeeds.
    """
    from baton.bench.serve import measure
    from baton.cli.load_view import print_result, progress_bar
    from baton.cli.output import print_json

    server, settings = _settings(options)
    with progress_bar() as progress:
        result = asyncio.run(measure(server, settings, progress))
    if as_json:
        print_json(result)
    else:
        print_result(result, settings.slo)
    if result["errors"] == result["requests"]:
        click.get_current_context().exit(1)


def _settings(options: dict[str, Any]) -> tuple[ServerSettings, LoadSettings]:
    from baton.bench.outcome import Slo
    from baton.bench.serve import LoadSettings
    from baton.bench.target import ServerSettings

    given = {name: value for name, value in options.items() if value is not None}
    if "speedup" in given and ("trace" not in given or "rate" in given):
        raise click.UsageError("--speedup needs --trace, and --rate replaces the trace's arrivals")
    slo = Slo(
        ttft_s=_seconds(given.pop("ttft_slo_ms", None)),
        itl_s=_seconds(given.pop("itl_slo_ms", None)),
    )
    server_fields = ("protocol", "addresses", "base_url", "api", "api_key", "model", "ignore_eos")
    server = ServerSettings(**{name: given.pop(name) for name in server_fields})
    seed = given.pop("seed", secrets.randbelow(2**32))
    return server, LoadSettings(slo=slo, seed=seed, **given)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
