"""Workers as Ray's actors: made, found, told to serve, ended. Called in the process that is Ray's client."""

from __future__ import annotations

from typing import Any

from baton.cluster.quiet_ray import ray
from baton.cluster.ray_types import OUTLIVING, ActorOptions
from baton.errors import Unavailable
from baton.worker.actor import Description, Launch, Outcome, WorkerActor

_CREATE_S = 60.0
_LEAVE_S = 5.0
_NUM_THREADS = 8  # of Ray's, for calls: every `serve` takes one


def create(launch: Launch, node_id: str, options: ActorOptions) -> Any:
    """The handle; returns before the process is there. Here and nowhere else a class becomes an actor."""
    node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    known_as = {
        "name": options.name,
        "namespace": options.namespace,
        "lifetime": "detached",
        "runtime_env": {"env_vars": OUTLIVING},  # of a Ray of our own it is everybody's
    }
    actor = ray.remote(WorkerActor).options(
        num_cpus=0,  # cores are given out by our placement
        max_restarts=0,  # the controller restarts
        max_concurrency=_NUM_THREADS,
        scheduling_strategy=node,
        **(known_as if options.detached else {}),
    )
    try:
        return actor.remote(launch)
    except ray.exceptions.ActorAlreadyExistsError as error:  # of one that Ray still takes for alive
        raise Unavailable(str(error)) from error


def find(options: ActorOptions) -> Any | None:
    """The handle of a living actor of this name, where such are found."""
    if not options.detached:
        return None
    try:
        return ray.get_actor(options.name, namespace=options.namespace)
    except ValueError:
        return None


def describe(actor: Any) -> Description:
    """Raises Unavailable where its process does not come up."""
    try:
        description: Description = ray.get(actor.describe.remote(), timeout=_CREATE_S)
    except ray.exceptions.RayError as error:
        raise Unavailable(f"its process did not start: {reason(error)}") from error
    return description


def serve(actor: Any) -> Outcome:
    """Returns when it has served. Raises Unavailable where its process ended."""
    try:
        outcome: Outcome = ray.get(actor.serve.remote())
    except ray.exceptions.RayActorError as error:
        raise Unavailable("its process ended") from error
    except ray.exceptions.RayError as error:  # something ended it
        raise Unavailable(f"its process ended: {reason(error)}") from error
    return outcome


def end(actor: Any) -> None:
    """Kills it, and waits until Ray says that it is dead."""
    serving = actor.serve.remote()
    ray.kill(actor)
    ray.wait([serving], timeout=_LEAVE_S)


def existing(namespace: str) -> list[str]:
    """Names of the detached actors of this namespace."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [entry["name"] for entry in named if entry["namespace"] == namespace]


def reason(error: Exception) -> str:
    """The first line of what Ray says, which says a page."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray's memory monitor killed it, since the node is low on memory"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
