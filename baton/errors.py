"""Every error that crosses a process boundary, and its status on gRPC and HTTP.

    BatonError
    +-- InvalidArgument        the request is wrong; `field` names where
    |   +-- UnknownModel
    |   +-- ContextLengthExceeded   prompt and output do not fit into the model's context
    +-- Unauthenticated
    +-- PermissionDenied
    +-- NotFound
    +-- Overloaded             refused at the door; `retry_after_s` says when to come back
    +-- DeadlineExceeded
    +-- Cancelled
    +-- Unavailable            no worker can serve this now
    |   +-- Draining           this process is leaving; any other one serves the request
    |   +-- PeerLost           the other side of a hand-off is gone, or makes no progress
    |   +-- WeightsGone        the weights with which an answer was begun are served no more
    +-- IncompatiblePeer       fingerprints that cannot be paired
    +-- IntegrityError         bytes or accounting are not what they must be
    +-- Internal               a defect of Baton
    |   +-- Suspected          workers died while they computed this request
    +-- ConfigError            a configuration or checkpoint that cannot be served (start-up only)

A subclass is added by writing the class and one row of `STATUS`.
"""

from __future__ import annotations

from dataclasses import dataclass


class BatonError(Exception):
    """Base of all. `field` is the dotted name of the input at fault, empty where none is."""

    def __init__(self, message: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    @property
    def code(self) -> str:
        return STATUS[type(self)].code


class InvalidArgument(BatonError):
    pass


class UnknownModel(InvalidArgument):
    pass


class ContextLengthExceeded(InvalidArgument):
    pass


class Unauthenticated(BatonError):
    pass


class PermissionDenied(BatonError):
    pass


class NotFound(BatonError):
    pass


class Overloaded(BatonError):
    pass


class DeadlineExceeded(BatonError):
    pass


class Cancelled(BatonError):
    pass


class Unavailable(BatonError):
    pass


class Draining(Unavailable):
    pass


class PeerLost(Unavailable):
    pass


class WeightsGone(Unavailable):
    pass


class IncompatiblePeer(BatonError):
    pass


class IntegrityError(BatonError):
    pass


class Internal(BatonError):
    pass


class Suspected(Internal):
    pass


class ConfigError(BatonError):
    pass


@dataclass(frozen=True, slots=True)
class Status:
    """`code` is the error's name on the wire, `grpc` a name of grpc.StatusCode."""

    code: str
    grpc: str
    http: int


STATUS: dict[type[BatonError], Status] = {
    BatonError: Status("internal", "INTERNAL", 500),
    InvalidArgument: Status("invalid_argument", "INVALID_ARGUMENT", 400),
    UnknownModel: Status("model_not_found", "NOT_FOUND", 404),  # as OpenAI's API calls it
    ContextLengthExceeded: Status("context_length_exceeded", "INVALID_ARGUMENT", 400),
    Unauthenticated: Status("unauthenticated", "UNAUTHENTICATED", 401),
    PermissionDenied: Status("permission_denied", "PERMISSION_DENIED", 403),
    NotFound: Status("not_found", "NOT_FOUND", 404),
    Overloaded: Status("overloaded", "RESOURCE_EXHAUSTED", 429),
    DeadlineExceeded: Status("deadline_exceeded", "DEADLINE_EXCEEDED", 504),
    Cancelled: Status("cancelled", "CANCELLED", 499),
    Unavailable: Status("unavailable", "UNAVAILABLE", 503),
    Draining: Status("draining", "UNAVAILABLE", 503),
    PeerLost: Status("peer_lost", "UNAVAILABLE", 503),
    WeightsGone: Status("weights_gone", "UNAVAILABLE", 503),
    IncompatiblePeer: Status("incompatible_peer", "FAILED_PRECONDITION", 409),
    IntegrityError: Status("integrity", "DATA_LOSS", 500),
    Internal: Status("internal", "INTERNAL", 500),
    Suspected: Status("suspected", "INTERNAL", 500),
    ConfigError: Status("config", "FAILED_PRECONDITION", 500),
}

BY_CODE: dict[str, type[BatonError]] = {status.code: kind for kind, status in STATUS.items()}


def from_code(
    code: str, message: str, *, field: str = "", retry_after_s: float = 0.0
) -> BatonError:
    """Rebuilds the error that `code` names; an unknown code becomes `Internal`."""
    return BY_CODE.get(code, Internal)(message, field=field, retry_after_s=retry_after_s)
