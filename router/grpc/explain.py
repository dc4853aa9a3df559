"""A routing decision as operators read it: baton.v1's ExplainRoute."""

from __future__ import annotations

from baton import convert
from baton.v1 import admin_pb2
from router.routing.chooser import Explanation
from router.routing.policy import Choice, Way


def explanation_to_proto(
    num_prompt_tokens: int, explanation: Explanation
) -> admin_pb2.ExplainRouteResponse:
    return admin_pb2.ExplainRouteResponse(
        num_prompt_tokens=num_prompt_tokens,
        chosen=_option(explanation.choice),
        by_decode=map(_option, explanation.by_decode),
        by_prefill=map(_option, explanation.by_prefill),
    )


def _option(choice: Choice) -> admin_pb2.RouteOption:
    return admin_pb2.RouteOption(
        decode=convert.pool_to_proto(choice.decode.id),
        prefill=convert.pool_to_proto(choice.prefill.id) if choice.prefill else None,
        num_missing_tokens=choice.num_missing,
        local=_way(choice.local),
        remote=_way(choice.remote) if choice.remote else None,
        lends=choice.lends,
        num_streams=choice.num_streams,
        step_s=choice.step_s,
    )


def _way(way: Way) -> admin_pb2.RouteWay:
    return admin_pb2.RouteWay(
        wait_s=way.wait_s,
        compute_s=way.compute_s,
        transfer_s=way.transfer_s,
        others_s=way.others_s,
    )
