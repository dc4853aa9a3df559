"""Requests that cannot be decoded, answered with the field at fault.

gRPC's own answer to a request with, say, invalid UTF-8 is an opaque INTERNAL. Here a deserializer
never raises: it yields the message or an `Undecodable`, which the handler's wrapper turns into
INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from baton.errors import InvalidArgument

_LENGTH_DELIMITED = 2  # wire type


@dataclass(frozen=True, slots=True)
class Undecodable:
    error: InvalidArgument


def deserializer(method: str) -> Callable[[bytes], Message | Undecodable]:
    """For the requests of a method's full name, such as "baton.v1.Inference.Generate"."""
    descriptor = descriptor_pool.Default().FindMethodByName(method).input_type
    decode = GetMessageClass(descriptor).FromString

    def deserialize(data: bytes) -> Message | Undecodable:
        try:
            return decode(data)
        except DecodeError as error:
            return Undecodable(explain(descriptor, data, error))

    return deserialize


def explain(descriptor: Descriptor, data: bytes, error: DecodeError) -> InvalidArgument:
    """Names the string field that is not UTF-8, or says that the bytes are no such message."""
    if path := _bad_utf8(descriptor, data):
        return InvalidArgument("is not valid UTF-8", field=path)
    return InvalidArgument(f"is no {descriptor.full_name}: {error}", field="message")


def _bad_utf8(descriptor: Descriptor, data: bytes) -> str:
    """The dotted path of the first string that is not UTF-8; empty where there is none."""
    try:
        fields = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return ""
    seen: dict[int, int] = {}
    for unknown in (fields[position] for position in range(len(fields))):
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or unknown.wire_type != _LENGTH_DELIMITED:
            continue
        index = seen[field.number] = seen.get(field.number, -1) + 1
        if path := _bad_utf8_in(field, unknown.data, index):
            return path
    return ""


def _bad_utf8_in(field: FieldDescriptor, data: bytes, index: int) -> str:
    name = f"{field.name}[{index}]" if field.is_repeated else field.name
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            data.decode()
        except UnicodeDecodeError:
            return name
    elif field.message_type is not None and (inner := _bad_utf8(field.message_type, data)):
        return f"{name}.{inner}"
    return ""
