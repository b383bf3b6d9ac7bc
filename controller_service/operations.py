"""Calls about operations, by their ids: the engines are asked, then what is kept of those that are gone.

The controller keeps no index of operations: which engine knows an id is asked when it is needed, so that calls
themselves cost nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller_service import operation_pages
from controller_service.answers import operation_of, outcome_message
from controller_service.journal_records import Result
from controller_service.poll import PATIENCE, Poll
from controller_service.task_operations import TaskOperations
from enginery import _ids
from enginery._engine import CallContext, CallReply
from enginery._methods import ANY_ENGINE, METHODS
from enginery._reasons import DeliveryError
from enginery._requests import parse, read_operation_id
from enginery.v1 import frame_pb2, operation_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from controller_service.reference import EngineFromReference
    from controller_service.switchboard import Switchboard


ATTACH = METHODS["Attach"]
_GET = METHODS["GetOperation"]
_LIST = METHODS["ListOperations"]
_CANCEL = METHODS["Cancel"]
_RELEASE = METHODS["Release"]
UNARY = frozenset((_GET, _LIST, _CANCEL, _RELEASE))
"""Methods that `Operations.call` serves."""
_LONGEST_WAIT = 60.0  # seconds, by the contract
MAX_RELEASED = 1_000
"""Operations of one Release."""
_UNKNOWING = frozenset(
    (
        "OPERATION_NOT_FOUND",
        "INVALID_ENGINE_ID",
        "NO_ENGINES_REGISTERED",
        "ENGINE_LOST",
        "ENGINE_STOPPED",
    )
)
"""Why an engine does not tell of an operation that may be kept here."""


class Operations:
    """Serves GetOperation, ListOperations, Cancel and Release, and finds the operation of Attach.

    With an engine id that engine is called as for any other method, without one all that are connected are
    asked; what they do not know is answered from what is kept. Every call may raise DeliveryError:
    OPERATION_NOT_FOUND, ENGINE_AWAY if an engine that may know the operation cannot be asked now, and what
    engines say.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        """Ask the engines of `switchboard`."""
        self._switchboard = switchboard
        self.tasks = TaskOperations(switchboard.tasks, switchboard.references)
        """What of them are tasks."""
        self._answers = switchboard.answers

    async def call(self, engine_id: int | None, method: int, request: bytes, context: CallContext) -> CallReply:
        """Serve a unary call."""
        if engine_id == ANY_ENGINE:
            engine_id = None
        if method == _RELEASE:
            return _ok(await self._release(engine_id, request))
        if engine_id is not None:
            return await self._call_one(engine_id, method, request, context)
        if method == _LIST:
            return _ok(await operation_pages.page(self._switchboard, request))
        operation_id, seconds = _named(method, request)
        found = await self._find(operation_id, method, request, seconds)
        if isinstance(found, tuple):
            return CallReply(frame_pb2.OUTCOME_OK, found[1])
        return _kept(method, found)

    async def locate(
        self, engine_id: int | None, request: bytes, context: CallContext
    ) -> tuple[EngineFromReference, bytes] | Result:
        """Return the engine that knows the operation of an AttachRequest, and the request for it, or its end.

        A task that waits for an engine is waited for.
        """
        attach = parse(operation_pb2.AttachRequest, request)
        operation_id = read_operation_id(attach.operation_id)
        placed = await self.tasks.place(operation_id, _LONGEST_WAIT)
        if placed is not None:
            engine, attempt_id = placed
            attach.operation_id = _ids.show(attempt_id)
            return engine, attach.SerializeToString()
        question = operation_pb2.GetOperationRequest(operation_id=attach.operation_id).SerializeToString()
        if engine_id is None or engine_id == ANY_ENGINE:
            found = await self._find(operation_id, _GET, question, 0.0)
            return found if isinstance(found, Result) else (self._switchboard.engine(found[0]), request)
        try:
            engine = self._switchboard.engine(engine_id)
            await engine.call(_GET, question, context)
        except DeliveryError as error:
            return await self._instead(error, operation_id)
        return engine, request

    async def _call_one(self, engine_id: int, method: int, request: bytes, context: CallContext) -> CallReply:
        try:
            return await self._switchboard.engine(engine_id).call(method, request, context)
        except DeliveryError as error:
            if method == _LIST:
                raise
            return _kept(method, await self._instead(error, _named(method, request)[0]))

    async def _instead(self, error: DeliveryError, operation_id: bytes) -> Result:
        """Return what is kept of an operation that its engine cannot tell of; else raise why it cannot."""
        result = await self._answers.find(operation_id) if error.reason in _UNKNOWING else None
        if result is None:
            raise error
        return result

    async def _find(
        self, operation_id: bytes, method: int, request: bytes, seconds: float
    ) -> tuple[int, bytes] | Result:
        """Return the engine that knows the operation and its response, or else what is kept of it.

        For a task it is ANY_ENGINE.
        """
        of_task = await self.tasks.find(operation_id, method, request, seconds)
        if of_task is not None:
            return ANY_ENGINE, of_task
        engines = self._switchboard.engines(None)
        # The engine for which a call of that operation waits is the one that knows, or will.
        asked = [one for one in engines if one.has_waiting(operation_id)] or engines
        poll = Poll([one for one in asked if one.is_connected], first_wins=True)
        await poll.ask(method, request, seconds=PATIENCE + seconds)
        for response in poll.responses.items():
            return response
        result = await self._answers.find(operation_id)
        if result is not None:
            return result
        unsure = [*poll.unsure, *(one.engine_id for one in asked if not one.is_connected)]
        if unsure:
            raise DeliveryError("ENGINE_AWAY", engine_id=unsure[0])
        raise DeliveryError("OPERATION_NOT_FOUND", operation_id=_ids.show(operation_id))

    async def _release(self, engine_id: int | None, request: bytes) -> operation_pb2.ReleaseResponse:
        """Release on the engines and in what is kept. An operation that both know counts once."""
        ids = parse(operation_pb2.ReleaseRequest, request).operation_ids
        if len(ids) > MAX_RELEASED:
            cause = f"{len(ids)} are more than {MAX_RELEASED}"
            raise DeliveryError("BAD_REQUEST", field="operation_ids", cause=cause)
        named = {read_operation_id(text, "operation_ids") for text in ids}
        tasks = {one for one in named if self._switchboard.tasks.release(one)}
        named -= tasks
        kept = {one for one in named if await self._answers.find(one) is not None}
        self._answers.forget(named)
        engines = self._switchboard.engines(engine_id)
        for engine in engines:
            engine.release(named)
        connected = [one for one in engines if one.is_connected]
        await _release_on(connected, kept)
        return operation_pb2.ReleaseResponse(
            released_count=len(tasks) + len(kept) + await _release_on(connected, named - kept)
        )


async def _release_on(engines: list[EngineFromReference], operation_ids: set[bytes]) -> int:
    """Release operations on `engines`; return how many they knew."""
    if not operation_ids:
        return 0
    request = operation_pb2.ReleaseRequest(operation_ids=[_ids.show(one) for one in operation_ids])
    poll = Poll(engines, first_wins=False)
    await poll.ask(_RELEASE, request.SerializeToString())
    responses = [parse(operation_pb2.ReleaseResponse, one) for one in poll.responses.values()]
    return sum(one.released_count for one in responses)


def _named(method: int, request: bytes) -> tuple[bytes, float]:
    """Return which operation a call names, and how many seconds it may wait for its end."""
    if method == _CANCEL:
        return read_operation_id(parse(operation_pb2.CancelRequest, request).operation_id), 0.0
    get = parse(operation_pb2.GetOperationRequest, request)
    seconds = get.wait.ToNanoseconds() / 1e9
    return read_operation_id(get.operation_id), min(max(seconds, 0.0), _LONGEST_WAIT)


def _kept(method: int, result: Result) -> CallReply:
    """Return the reply to GetOperation or Cancel for an operation that no engine knows any more."""
    operation = operation_of(result)
    if method == _CANCEL:
        return _ok(operation_pb2.CancelResponse(operation=operation))
    return _ok(operation_pb2.GetOperationResponse(operation=operation, outcome=outcome_message(result)))


def _ok(response: Message) -> CallReply:
    return CallReply(frame_pb2.OUTCOME_OK, response.SerializeToString())
