"""What came back for one call, and what it leaves to be downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from enginery import _values, result
from enginery._methods import METHODS
from enginery.v1 import engine_pb2, error_pb2, value_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from enginery._decode import Errors
    from enginery._encoded import Encoded

_APPLY = METHODS["Apply"]
_EAGER = {
    METHODS["Apply"],
    METHODS["Execute"],
    METHODS["GetResult"],
    METHODS["Pull"],
    METHODS["PullFunction"],
    METHODS["PullSerialized"],
}


@dataclass(slots=True)
class Answer:
    """What came back for one call: the parsed message, and the blobs that it named, downloaded."""

    engine_id: int
    outcome: int
    message: Any
    blobs: dict[str, Encoded]
    fetch: Callable[[value_pb2.Blob], Encoded]
    """Downloads a blob of this engine that was not downloaded yet; waits."""
    errors: Errors

    def remote_error(self) -> error_pb2.RemoteError:
        """Return what user code raised."""
        message = self.message.result if isinstance(self.message, engine_pb2.ExecuteResponse) else self.message
        return cast("error_pb2.RemoteError", message.error)

    def value(self, value: value_pb2.Value) -> Encoded:
        """Return the bytes of a value, downloaded or in the message."""
        if value.WhichOneof("kind") == "blob":
            return self.blobs[value.blob.blob_id]
        return _values.from_value(value)

    def namespace(self) -> Encoded:
        """Return the dictionary of a Pull."""
        if self.message.WhichOneof("namespace") == "blob":
            return self.blobs[self.message.blob.blob_id]
        return _values.from_pickle(self.message.pickled)

    def output(self, stream: str) -> str:
        """Return `stdout` or `stderr`; what is longer than rides in an answer is fetched. Waits."""
        if isinstance(self.message, engine_pb2.ExecuteResponse):
            record = result.ExecuteResult(self.message.result, (), self.fetch, "wrap")
            return record.stdout if stream == "stdout" else record.stderr
        return str(getattr(self.message, stream, ""))

    def duration(self) -> float | None:
        """Return how long user code ran, in seconds; None if none did."""
        message = self.message.result if isinstance(self.message, engine_pb2.ExecuteResponse) else self.message
        ran = isinstance(message, engine_pb2.ExecuteResult | engine_pb2.ApplyResponse)
        return message.duration.ToNanoseconds() / 1e9 if ran else None

    def value_size(self) -> int:
        """Return how many bytes the value of an Apply has."""
        if not isinstance(self.message, engine_pb2.ApplyResponse):
            return 0
        value = self.message.value
        return value.blob.size if value.WhichOneof("kind") == "blob" else value.ByteSize()

    def displays(self) -> list[result.Display]:
        """Return what was displayed."""
        message = self.message.result if isinstance(self.message, engine_pb2.ExecuteResponse) else self.message
        return [result.display(display, self.blobs) for display in getattr(message, "displays", ())]

    def forget_value(self) -> None:
        """Let go of the value's bytes once they are decoded."""
        if isinstance(self.message, engine_pb2.ApplyResponse):
            if self.blobs:
                self.blobs.pop(self.message.value.blob.blob_id, None)
            self.message.ClearField("value")  # what else it holds, output and displays, stays
        elif not isinstance(self.message, engine_pb2.ExecuteResponse):  # its result holds that anyway
            self.message = None
            self.blobs = {}


def blobs_of(method: int, message: Any) -> list[tuple[value_pb2.Blob, bool]]:
    """Return the blobs to download before a call counts as answered, each with whether it is indispensable.

    The value and the output of an Execute are not among them: they wait until someone asks.
    """
    if method not in _EAGER:
        return []
    if method == _APPLY and message.value.WhichOneof("kind") != "blob" and not message.displays:
        return []  # what tasks mostly are
    found: list[tuple[value_pb2.Blob, bool]] = []
    if method in (METHODS["Pull"], METHODS["PullFunction"]):
        if message.WhichOneof("namespace") == "blob":
            found.append((message.blob, True))
    elif method == METHODS["PullSerialized"]:
        found += [(value.blob, True) for value in message.values.values() if value.WhichOneof("kind") == "blob"]
    elif method == METHODS["Apply"]:
        if message.value.WhichOneof("kind") == "blob":
            found.append((message.value.blob, True))
        found += _display_blobs(message.displays)
    else:
        found += _display_blobs(message.result.displays)
    return found


def _display_blobs(displays: Iterable[value_pb2.Display]) -> list[tuple[value_pb2.Blob, bool]]:
    return [
        (form.blob, False)
        for display in displays
        for form in display.data
        if form.WhichOneof("content") == "blob"
    ]
