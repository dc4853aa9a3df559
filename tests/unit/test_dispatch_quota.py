"""What requests that come as far as to be admitted count against their tenants' quotas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.errors import Overloaded
from baton.state.embedded import EmbeddedState
from router.admission.admission import AdmissionSettings
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.frontend import Admitted
from router.gate import Gate
from router.intake import Intake
from router.models import Models
from router.request import GenerateInput
from router.routing.chooser import Chooser
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pools
from router.telemetry.request_log import RequestLog
from router.workers.fleet import Fleet
from tests.unit.lives import make_worker

CONTINUED = GenerateInput(prompt=(1,) * 100, output_token_ids=((2,) * 50,), tenant="acme")


def make_dispatcher(gate: Gate) -> Dispatcher:
    pools, index = Pools(), BlockIndex()
    pools.put(make_worker("d-0"))
    fleet = Fleet(EmbeddedState(), pools, index, "r-0", gate.resize)
    chooser = Chooser(pools, index, PolicySettings())
    return Dispatcher(
        RouterConfig(), Intake(Models({}, pools)), fleet, chooser, gate, RequestLog(4, [])
    )


async def admit(dispatcher: Dispatcher, request: GenerateInput) -> Admitted:
    """The request comes as far as to be admitted, and is then given up."""
    updates = dispatcher.generate(request)
    try:
        admitted = await anext(updates)
    finally:
        await updates.aclose()
    assert isinstance(admitted, Admitted)
    return admitted


async def test_a_continuation_counts_against_its_tenants_quota_with_all_that_it_brings() -> None:
    gate = Gate(AdmissionSettings(quotas=("acme=10",), quota_burst_s=10.0))
    dispatcher = make_dispatcher(gate)
    await admit(dispatcher, CONTINUED)
    assert gate.quotas.spent == {"acme": 150.0}
    with pytest.raises(Overloaded, match="quota"):
        await admit(dispatcher, CONTINUED)
    await admit(dispatcher, replace(CONTINUED, tenant="other"))
