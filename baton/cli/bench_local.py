"""`baton bench ttft`, `faces`, `interference`, `engine`, `kv`: what they take. They start what they need."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import click

from baton.cli.options import json_option


class _Counts(click.ParamType[tuple[int, ...]]):
    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            counts = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 32,512", param, ctx)
        if min(counts) < 1:
            self.fail(f"{value!r} has a number below 1", param, ctx)
        return tuple(dict.fromkeys(counts))


class _Names(click.ParamType[tuple[str, ...]]):
    name = "NAME,NAME,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part.strip() for part in str(value).split(",")))


_COUNTS = _Counts()
_NAMES = _Names()
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)

_model_option = click.option(
    "--model",
    default="llama-125m",
    show_default=True,
    help="A shape's name, or a folder with a config.json; weights are dummies.",
)
_time_limit_option = click.option(
    "--time-limit",
    "time_limit_s",
    type=_POSITIVE,
    default=200.0,
    show_default=True,
    metavar="SECONDS",
    help="Fewer rounds where they would take longer (never fewer than a few).",
)
_seed_option = click.option("--seed", type=int, help="Of the prompts. [default: a new one]")


@click.command()
@click.option("--prompts", type=_COUNTS, default="32,512,2048", show_default=True, help="Tokens.")
@click.option("--rounds", "num_rounds", type=_COUNT, default=15, show_default=True)
@_model_option
@_time_limit_option
@_seed_option
@json_option
def ttft(as_json: bool, seed: int | None, **options: Any) -> None:
    """Time to first token on an idle machine, disaggregated against aggregated.

    Both clusters run side by side, one core for each worker, and take turns. Each round sends every
    length to both. Fails where a prompt of 512 tokens or more was not prefilled remotely.
    """
    from baton.bench.ttft import TtftSettings, measure
    from baton.cli.bench_view import print_ttft, step_bar
    from baton.cli.output import print_json

    settings = TtftSettings(**options, seed=_seed(seed))
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        print_ttft(result)


@click.command()
@click.option("--prompts", type=_COUNTS, default="8,128", show_default=True, help="Words.")
@click.option("--rounds", "num_rounds", type=_COUNT, default=31, show_default=True)
@click.option(
    "--model",
    default="demo/model",
    show_default=True,
    help="A folder with a config.json and a tokenizer; weights are dummies.",
)
@_time_limit_option
@_seed_option
@json_option
def faces(as_json: bool, seed: int | None, **options: Any) -> None:
    """Time to first text over HTTP beside gRPC, at one router with one idle worker.

    Over HTTP it is measured twice in every round: by the load generator of `baton bench serve`, and by a
    process that shares no code with it. Connections are kept, as clients do.
    """
    from baton.bench.faces import FacesSettings, measure
    from baton.cli.bench_view import print_faces, step_bar
    from baton.cli.output import print_json

    settings = FacesSettings(**options, seed=_seed(seed))
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        print_faces(result)


@click.command()
@click.option("--streams", "num_streams", type=_COUNT, default=8, show_default=True)
@click.option(
    "--prompt-tokens",
    "num_prompt_tokens",
    type=_COUNT,
    default=2048,
    show_default=True,
    help="Of each prompt that arrives.",
)
@click.option(
    "--chunk-budgets",
    type=_COUNTS,
    default="32,64,128,256",
    show_default=True,
    help="Of the aggregated worker; the best is compared.",
)
@click.option("--rounds", "num_rounds", type=_COUNT, default=6, show_default=True)
@click.option(
    "--quiet", "quiet_s", type=_POSITIVE, default=3.0, show_default=True, metavar="SECONDS"
)
@click.option(
    "--loaded", "loaded_s", type=_POSITIVE, default=5.0, show_default=True, metavar="SECONDS"
)
@_model_option
@_time_limit_option
@_seed_option
@json_option
def interference(as_json: bool, seed: int | None, **options: Any) -> None:
    """Inter-token latency of streams, quiet and while long prompts arrive.

    Disaggregated (a core each for prefill and decode) and aggregated (both cores for one worker) run
    side by side and take turns; one prompt after the other arrives as long as the load lasts.
    """
    from baton.bench.interference import InterferenceSettings, measure
    from baton.cli.bench_view import print_interference, step_bar
    from baton.cli.output import print_json

    settings = InterferenceSettings(**options, seed=_seed(seed))
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        print_interference(result)


@click.command()
@click.option(
    "--shapes", type=_NAMES, default="llama-125m,qwen2.5-0.5b", show_default=True, help="By name."
)
@click.option(
    "--batches", type=_COUNTS, default="1,8", show_default=True, help="Requests at a time."
)
@click.option("--threads", type=_COUNTS, default="1,2", show_default=True)
@click.option("--prompt-tokens", "num_prompt_tokens", type=_COUNT, default=128, show_default=True)
@click.option(
    "--output-tokens",
    "num_new_tokens",
    type=click.IntRange(min=3),
    default=32,
    show_default=True,
)
@click.option(
    "--pairs", "num_pairs", type=_COUNT, help="[default: 15, or 5 where one takes over 20 s]"
)
@_seed_option
@json_option
def engine(as_json: bool, seed: int | None, num_pairs: int | None, **options: Any) -> None:
    """Tokens/s of Baton's engine against transformers' generate, on the CPU.

    A decode worker's step loop without its network (fp16 weights) and generate (fp32) take turns on
    the same dummy weights, greedily. Rates are of decode; those with the prompts stand beside them.
    """
    from baton.bench.engine import EngineSettings, measure
    from baton.cli.bench_view import print_engine, step_bar
    from baton.cli.output import print_json

    settings = EngineSettings(**options, num_pairs=num_pairs or 0, seed=_seed(seed))
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        print_engine(result)


@click.command()
@click.option(
    "--transports", type=_NAMES, default=None, help="By name. [default: all that are installed]"
)
@click.option(
    "--blocks",
    "num_blocks",
    type=_COUNTS,
    default="1,11,42",
    show_default=True,
    help="Payloads, in blocks of 1.6 MB.",
)
@click.option("--rounds", "num_rounds", type=_COUNT, default=21, show_default=True)
@click.option("--scattered", is_flag=True, help="Destination blocks that are not adjacent.")
@click.option("--hidden-rounds", type=_COUNT, default=5, show_default=True)
@_seed_option
@json_option
def kv(as_json: bool, seed: int | None, transports: tuple[str, ...] | None, **options: Any) -> None:
    """The hand-off's transports against this machine's limits, and what prefill hides of a transfer.

    Two processes, one writing into the other's KV pool; each transport takes turns with its limit
    (memcpy, or a raw TCP socket). Then a real prefill over a link that is throttled to a given part
    of its time.
    """
    from baton.bench.kv import KvSettings, measure
    from baton.cli.bench_view import print_kv, step_bar
    from baton.cli.output import print_json

    settings = KvSettings(**options, seed=_seed(seed))
    if transports is not None:
        settings = replace(settings, transports=transports)
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        print_kv(result)


def _seed(given: int | None) -> int:
    return secrets.randbelow(2**32) if given is None else given
