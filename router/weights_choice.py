"""With which weights a request is served, of all that have its model's name.

While a model is updated, workers with the old weights and with the new serve side by side. A request may
begin with any; from the first part of its answer on it stays with those: over all its attempts, hand-offs
and lent prefixes, and from router to router (`Admitted.weights`). Where they are served no more it ends with
`WeightsGone`, unless it is configured that others go on.
"""

from __future__ import annotations

from math import inf

from baton.errors import WeightsGone
from router.models import Models
from router.request_life import RequestLife
from router.routing.chooser import Chooser, Takes
from router.routing.policy import Choice


class WeightsChoice:
    """`mixes`: others may go on with an answer whose weights are gone."""

    def __init__(self, models: Models, chooser: Chooser, *, mixes: bool) -> None:
        self._models = models
        self._chooser = chooser
        self._mixes = mixes

    def begin(self, life: RequestLife, takes: Takes, now_s: float) -> None:
        """Chooses those that are predicted to answer first, where the request may be served with any.
        Raises WeightsGone where it wants weights that nobody has."""
        known, wanted = self._models.fingerprints(life.model.name), life.request.weights
        if wanted and wanted not in {each.identity for each in known}:
            if not self._mixes:
                raise self.gone(life, wanted)
            life.weights_settled = False
        if len(known) > 1 and not life.weights_settled:
            costs = []
            for life.fingerprint in known:
                choice = self._chooser.predict(life.prompt_blocks(), takes, now_s)
                costs.append(choice.way.cost_s if choice else inf)
            life.fingerprint = known[costs.index(min(costs))]

    def choose(self, life: RequestLife, takes: Takes, now_s: float) -> Choice | None:
        """The best pair with the request's weights; of others only where no worker has those and none of
        the answer was computed with them."""
        settled = life.fingerprint
        choice = self._chooser.choose(life.prompt_blocks(), takes, now_s)
        if choice is not None or (life.weights_settled and not self._mixes):
            return choice
        for fingerprint in self._models.fingerprints(life.model.name):
            if fingerprint.identity != settled.identity:
                life.fingerprint = fingerprint
                if choice := self._chooser.choose(life.prompt_blocks(), takes, now_s):
                    return choice
        life.fingerprint = settled
        return None

    def are_gone(self, life: RequestLife) -> bool:
        """Whether the model is served with other weights than the request needs."""
        known = self._models.fingerprints(life.model.name)
        return life.weights_settled and any(
            each.identity != life.fingerprint.identity for each in known
        )

    @staticmethod
    def gone(life: RequestLife, identity: str) -> WeightsGone:
        return WeightsGone(
            f"its answer was begun with weights {identity} of model {life.model.name!r}, "
            "which no worker serves any more"
        )
