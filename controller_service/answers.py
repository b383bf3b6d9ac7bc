"""Answers of operations whose engine can give them no more: those that were lost, and what the journal has."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from controller_service.journal_records import Result
from enginery import _ids
from enginery._methods import ENGINE_SERVICE, METHODS, PYTHON_NAMES
from enginery._outcomes import STATES, failure_of
from enginery._reasons import DeliveryError
from enginery._replies import undelivered
from enginery._status import from_bytes
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from controller_service.journal import AnyJournal

logger = logging.getLogger(__name__)

FINAL = frozenset(STATES) - {frame_pb2.OUTCOME_NOT_DELIVERED}
"""Outcomes of operations that have ended for good, and are kept."""
MAX_LOST = 16_384
"""Operations of lost engines that are remembered without a journal, the newest."""
MAX_QUESTIONS = 100_000
"""Calls that may wait for the journal at the same time; callers of more are told to come again."""
_AT_ONCE = 256  # answers that are handled before the loop does something else
_SUBMIT = METHODS["Submit"]
_TYPES = {
    METHODS[rpc.name]: f"type.googleapis.com/{rpc.output_type.full_name}" for rpc in ENGINE_SERVICE.methods
}

_Lost: TypeAlias = tuple[bytes, int, bytes, int, int, bytes, int]
"""Id, method, session, engine, outcome, error and milliseconds: a tuple, since there may be many at once."""

Answer = Result | DeliveryError | None
"""How an operation ended, or why that cannot be told; None if it is not known."""


class Answers:
    """Finds answers, and keeps those that must be found. `start` and `stop` once each."""

    def __init__(self, journal: AnyJournal) -> None:
        """Read and write `journal`."""
        self.journal = journal
        self._lost: dict[bytes, _Lost] = {}
        self._unwritten: deque[_Lost] = deque()
        self._questions: deque[tuple[bytes, Callable[[Answer], None]]] = deque()
        self._asked = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Show the counts."""
        return f"Answers(lost={len(self._lost)}, questions={len(self._questions)})"

    def start(self) -> None:
        """Begin to answer questions."""
        self._reader = asyncio.create_task(self._answer_all())

    async def stop(self) -> None:
        """End; questions that still wait are dropped, for their streams are over."""
        while self._unwritten:
            self._write_lost()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def lost(
        self, operations: Collection[tuple[bytes, int, bytes]], engine_id: int, failure: frame_pb2.Reply
    ) -> None:
        """Keep that operations (id, method, session) were lost with their engine, unless they had ended."""
        end = (engine_id, failure.outcome, failure.error, time.time_ns() // 1_000_000)
        lost = [(*operation, *end) for operation in operations]
        self._lost.update((one[0], one) for one in lost)
        for operation_id in list(itertools.islice(self._lost, max(0, len(self._lost) - MAX_LOST))):
            del self._lost[operation_id]
        is_idle = not self._unwritten
        self._unwritten.extend(lost)
        if is_idle:
            self._write_lost()

    def _write_lost(self) -> None:
        """Give some of what was lost to the journal, and the rest soon: there may be too many for one go."""
        for _ in range(min(_AT_ONCE, len(self._unwritten))):
            operation_id, method, session_id, engine_id, outcome, error, _ = self._unwritten.popleft()
            # The journal keeps the first result of an operation, so what is told later is always the same.
            self.journal.add_result(operation_id, engine_id, method, session_id, outcome, b"", error)
        if self._unwritten:
            asyncio.get_running_loop().call_soon(self._write_lost)

    def forget(self, operation_ids: Collection[bytes]) -> None:
        """Remove what is kept of those operations."""
        for operation_id in operation_ids:
            self._lost.pop(operation_id, None)
        self.journal.forget(operation_ids)

    async def find(self, operation_id: bytes) -> Result | None:
        """Return how an operation ended, None if it is not known; JOURNAL_UNAVAILABLE if the journal is."""
        try:
            result = await self.journal.find(operation_id)
        except DeliveryError:
            if operation_id not in self._lost:
                raise
            result = None
        return result or self._find_lost(operation_id)

    def _find_lost(self, operation_id: bytes) -> Result | None:
        if operation_id not in self._lost:
            return None
        _, method, session_id, engine_id, outcome, error, now = self._lost[operation_id]
        return Result(operation_id, engine_id, method, session_id, outcome, now, error=error)

    def ask(self, operation_id: bytes, then: Callable[[Answer], None]) -> None:
        """Call `then` with the answer, soon: for those who cannot wait."""
        if len(self._questions) >= MAX_QUESTIONS:
            then(DeliveryError("JOURNAL_UNAVAILABLE", cause=f"{MAX_QUESTIONS} calls wait for it"))
        else:
            self._questions.append((operation_id, then))
            self._asked.set()

    async def _answer_all(self) -> None:
        while True:
            await self._asked.wait()
            while self._questions:
                if not len(self._questions) % _AT_ONCE:
                    await asyncio.sleep(0)  # without a journal nothing else would let others have the loop
                operation_id, then = self._questions.popleft()
                try:
                    then(await self._look_up(operation_id))
                except Exception:
                    logger.exception("an answer could not be delivered")  # the next ones can
            self._asked.clear()

    async def _look_up(self, operation_id: bytes) -> Answer:
        try:
            return await self.find(operation_id)
        except DeliveryError as error:
            return error


def reply_of(result: Result, method: int) -> frame_pb2.Reply:
    """Return the reply to a call of `method` for an operation that ended as `result` says."""
    # Whatever was called: nothing else is known of an operation that was submitted and lost.
    if result.method in (method, _SUBMIT):
        return frame_pb2.Reply(
            outcome=result.outcome,  # type: ignore[arg-type]
            response=result.response,
            error=result.error,
        )
    if method == _SUBMIT:
        response = engine_pb2.SubmitResponse(operation=operation_of(result))
        return frame_pb2.Reply(outcome=frame_pb2.OUTCOME_OK, response=response.SerializeToString())
    return undelivered(0, DeliveryError("OPERATION_EXISTS", operation_id=_ids.show(result.operation_id)))


def operation_of(result: Result) -> operation_pb2.Operation:
    """Return an operation as far as the journal knows it. Its only event is its outcome."""
    operation = operation_pb2.Operation(
        operation_id=_ids.show(result.operation_id),
        state=STATES[result.outcome],
        engine_id=result.engine_id,
        method=PYTHON_NAMES.get(result.method, str(result.method)),
        session_id=result.session_id.hex(),
        last_sequence=1,
        attempts=result.attempts,
        label=result.label,
    )
    operation.end_time.FromMilliseconds(result.ended_ms)
    return operation


def outcome_message(result: Result) -> operation_pb2.OperationOutcome:
    """Return how an operation ended, its response unopened."""
    outcome = operation_pb2.OperationOutcome(state=STATES[result.outcome])
    if result.error:
        outcome.error.CopyFrom(failure_of(from_bytes(result.error)))
    else:
        outcome.response.type_url = _TYPES[result.method]
        outcome.response.value = result.response
    return outcome
