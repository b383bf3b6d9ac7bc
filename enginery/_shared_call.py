"""A call to many engines, whose request travels once: see `Call.targets` in frame.proto."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginery import _options
from enginery.v1 import cluster_pb2, frame_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginery._calls import Request


class SharedCall:
    """What the calls of one request on several engines have in common."""

    __slots__ = ("_call", "size")

    def __init__(self, request: Request[Any], count: int) -> None:
        """Take the request, and on how many engines it is called."""
        options = request.options
        self._call = frame_pb2.Call(
            method=frame_pb2.Method.ValueType(request.method),
            options=None if options is _options.NO_OPTIONS else _options.message(options),
            request=request.payload,
            function_digest=b"" if request.function is None else request.function.digest,
        )
        self.size = (len(request.payload) + request.function_size) // count
        """The bytes that each of them counts for."""

    def frame(self, first_id: int, targets: Sequence[tuple[int, int]]) -> bytes:
        """Return a serialized SessionRequest with the calls whose ids are `first_id` and those that follow it,
        one for each engine and its `sent_epoch`. On the loop's thread alone."""
        call = self._call
        call.call_id = first_id
        del call.targets[:]
        for engine_id, sent_epoch in targets:
            call.targets.add(engine_id=engine_id, sent_epoch=sent_epoch)
        return cluster_pb2.SessionRequest(calls=[call]).SerializeToString()
