"""The controller's end of one registration stream, which several engines share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller_service.frames import function_fragment
from controller_service.receipts import Receipts
from enginery._function_window import FunctionWindow
from enginery._reasons import DeliveryError
from enginery.v1 import engine_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controller_service.router import RoutedCall
    from enginery.v1 import frame_pb2


class Link:
    """One stream. `send` takes a serialized ControllerMessage, `end` ends the stream with an error."""

    def __init__(
        self, number: int, send: Callable[[bytes], None], end: Callable[[DeliveryError], None]
    ) -> None:
        """Take the stream's number, and how to send on it and end it."""
        self.number = number
        self.send = send
        self.end = end
        self.receipts = Receipts()
        self._calls: dict[int, RoutedCall] = {}  # by number: those that were sent here and wait
        self._unaccepted: dict[int, RoutedCall] = {}  # by position, so in the order in which they were sent
        self._functions = FunctionWindow()
        self._sent_count = 0
        self._accepted_count = 0

    def __repr__(self) -> str:
        """Show the counts."""
        counts = f"calls={len(self._calls)}, unaccepted={len(self._unaccepted)}, {self.receipts}"
        return f"Link({self.number}, {counts})"

    def post(self, call: RoutedCall, frame: bytes) -> None:
        """Send `frame`, which stands for `call`, behind the function that it names."""
        self._sent_count += 1
        call.position = self._sent_count
        self._calls[call.number] = call
        self._unaccepted[call.position] = call
        function = call.function
        if function is not None and function not in self._functions:
            self._functions.add(function)
            self._functions.trim()
            self.send(function_fragment(function))
        self.send(frame)

    def withdraw(self, calls: Iterable[RoutedCall]) -> None:
        """Expect no reply to `calls` here any more."""
        for call in calls:
            if self._calls.pop(call.number, None) is not None:
                self._unaccepted.pop(call.position, None)

    def answer(self, reply: frame_pb2.Reply) -> None:
        """Take a reply from the host; one that nobody waits for is ignored."""
        call = self._calls.pop(reply.call_id, None)
        if call is not None:
            self._unaccepted.pop(call.position, None)
            call.owner.answer(call, reply)

    def accepted(self, count: int) -> None:
        """The host has the first `count` calls of this stream; PROTOCOL_ERROR if there are not so many."""
        if count > self._sent_count:
            cause = f"{count} calls are said to be accepted, of {self._sent_count} that were sent"
            raise DeliveryError("PROTOCOL_ERROR", cause=cause)
        if count <= self._accepted_count:
            return
        self._accepted_count = count
        accepted = []
        for position, call in self._unaccepted.items():
            if position > count:
                break
            accepted.append(call)
        for call in accepted:
            del self._unaccepted[call.position]
            call.owner.accepted(call)

    def acknowledge(self, *, appended: int, committed: int) -> None:
        """Tell the host which answers the journal has for good, if there is news."""
        count = self.receipts.settle(appended=appended, committed=committed)
        if count is not None:
            self.send(engine_pb2.ControllerMessage(journaled_count=count).SerializeToString())
        if self.receipts.is_stuck:
            cause = "it had no room for what was told on this stream, and has it now"
            self.end(DeliveryError("JOURNAL_UNAVAILABLE", cause=cause))
