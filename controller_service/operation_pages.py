"""A page of all operations: those of connected engines and waiting tasks, then those that only the journal has.

Engines list theirs by falling position (`enginery._pages`), so a page of all of them is their pages, merged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from controller_service.answers import FINAL, operation_of
from controller_service.poll import Poll
from controller_service.task import State
from controller_service.work import show
from enginery import _ids, _pages
from enginery._methods import METHODS
from enginery._outcomes import STATES
from enginery._reasons import DeliveryError
from enginery._requests import parse, read_session_id
from enginery.v1 import operation_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controller_service.journal_records import Result
    from controller_service.reference import EngineFromReference
    from controller_service.scheduler import Scheduler
    from controller_service.switchboard import Switchboard

_LIST = METHODS["ListOperations"]
_GET = METHODS["GetOperation"]
_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1_000
_JOURNAL = "journal."  # begins the tokens of pages of the journal
_DIGITS = 18  # of a 63-bit number

_Request = operation_pb2.ListOperationsRequest
_Response = operation_pb2.ListOperationsResponse


async def page(switchboard: Switchboard, data: bytes) -> operation_pb2.ListOperationsResponse:
    """Return the page that the serialized ListOperationsRequest asks for.

    Raises DeliveryError: BAD_PAGE_TOKEN, BAD_REQUEST, MALFORMED_MESSAGE, JOURNAL_UNAVAILABLE.
    """
    request = parse(_Request, data)
    session_id = read_session_id(request.session_id)
    size = min(request.page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
    response = _Response()
    before = 0
    if request.page_token.startswith(_JOURNAL):
        before = _read(request.page_token)
    else:
        waiting = _waiting(switchboard.tasks.scheduler, request, session_id, size)
        await _add_of_engines(_connected(switchboard), waiting, request, size, response)
        if response.next_page_token:
            return response
    await _add_of_journal(switchboard, request, session_id, size, before, response)
    return response


def _connected(switchboard: Switchboard) -> list[EngineFromReference]:
    return [one for one in switchboard.engines(None) if one.is_connected]


def _waiting(scheduler: Scheduler, request: _Request, session_id: bytes, size: int) -> _Response:
    """Return a page of the tasks that no engine lists: it says nothing of sessions for those that it has."""
    response = _Response()
    before = _pages.read(request.page_token)
    states = set(request.states) or {operation_pb2.OPERATION_STATE_QUEUED}
    if operation_pb2.OPERATION_STATE_QUEUED not in states:
        return response
    for task in scheduler.newest_first():
        position = task.payload.submitted_ns, task.task_id
        if (before is not None and position >= before) or session_id not in (b"", task.session_id):
            continue
        if task.state is State.PLACED and not session_id:
            continue
        if len(response.operations) == size:
            response.next_page_token = _pages.token(_position(response.operations[-1]))
            break
        response.operations.append(show(task))
    return response


async def _add_of_engines(
    engines: list[EngineFromReference],
    waiting: _Response,
    request: operation_pb2.ListOperationsRequest,
    size: int,
    response: operation_pb2.ListOperationsResponse,
) -> None:
    """Add the newest of all engines and of the tasks that wait, and a token if there are more."""
    question = _Request(
        page_size=size, page_token=request.page_token, states=request.states, session_id=request.session_id
    )
    poll = Poll(engines, first_wins=False)
    await poll.ask(_LIST, question.SerializeToString())
    pages = [waiting, *(_Response.FromString(one) for one in poll.responses.values())]
    # An engine that has more may have one that is newer than whatever lies below its last.
    floors = [_position(one.operations[-1]) for one in pages if one.next_page_token and one.operations]
    floor = max(floors, default=(0, b""))
    merged = sorted((one for found in pages for one in found.operations), key=_position, reverse=True)
    listed = [one for one in merged if _position(one) >= floor][:size]
    response.operations.extend(listed)
    if listed and (len(listed) < len(merged) or floors):
        response.next_page_token = _pages.token(_position(listed[-1]))


async def _add_of_journal(
    switchboard: Switchboard,
    request: operation_pb2.ListOperationsRequest,
    session_id: bytes,
    size: int,
    before: int,
    response: operation_pb2.ListOperationsResponse,
) -> None:
    """Fill the page up with what only the journal has, and add a token if there may be more."""
    states = set(request.states)
    outcomes = [one for one in FINAL if STATES[one] in states]
    if states and not outcomes:
        return
    room = size - len(response.operations)
    if not room:
        response.next_page_token = f"{_JOURNAL}0"
        return
    results = await switchboard.journal.page(room, before=before, session_id=session_id, outcomes=outcomes)
    listed = {_ids.parse(one.operation_id) for one in response.operations}
    others = [one for one in results if one.operation_id not in listed]
    known = await _known(_connected(switchboard), others)
    response.operations.extend(operation_of(one) for one in others if one.operation_id not in known)
    if len(results) == room:
        response.next_page_token = f"{_JOURNAL}{results[-1].number}"


async def _known(engines: list[EngineFromReference], results: Sequence[Result]) -> set[bytes]:
    """Return which of the operations their engines know still: they are on the engines' pages."""
    by_id = {engine.engine_id: engine for engine in engines}
    polls = {}
    for result in results:
        if result.engine_id in by_id:
            polls[result.operation_id] = Poll([by_id[result.engine_id]], first_wins=True)
    await asyncio.gather(
        *(
            poll.ask(
                _GET,
                operation_pb2.GetOperationRequest(operation_id=_ids.show(operation_id)).SerializeToString(),
            )
            for operation_id, poll in polls.items()
        )
    )
    return {operation_id for operation_id, poll in polls.items() if poll.responses}


def _position(operation: operation_pb2.Operation) -> _pages.Position:
    return operation.submit_time.ToNanoseconds(), _ids.parse(operation.operation_id)


def _read(token: str) -> int:
    """Return the number of the journal's result below which a page begins."""
    number = token.removeprefix(_JOURNAL)
    if not (number.isascii() and number.isdigit()) or len(number) > _DIGITS:
        raise DeliveryError("BAD_PAGE_TOKEN")
    return int(number)
