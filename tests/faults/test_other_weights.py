"""A prefill worker that serves other weights computes nothing for a decode worker, whatever a router says."""

from __future__ import annotations

from dataclasses import replace

from baton import convert
from baton.errors import IncompatiblePeer
from baton.v1 import prefill_pb2
from tests.faults.decode import Decode
from tests.faults.pair import paired
from tests.faults.prefill import FINGERPRINT


class OtherWeights(Decode):
    def _hello(self, stream: int) -> prefill_pb2.PrefillHello:
        hello = super()._hello(stream)
        other = replace(FINGERPRINT, identity="hash, with noise")
        hello.fingerprint.CopyFrom(convert.fingerprint_to_proto(other))
        return hello


async def test_a_pair_of_different_weights_is_refused() -> None:
    async with paired("shm", OtherWeights) as pair:
        life = await pair.serve()
        assert [type(error) for error in life.lost] == [IncompatiblePeer]
        assert pair.decode.num_handed_over == 0
        assert (await pair.decode.accounts()).settled, "it was never asked to write"
