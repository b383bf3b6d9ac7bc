"""Calls about operations, by their ids: on the loop's thread, patient while there is no connection."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from enginery import _recall
from enginery._connection import translated
from enginery._methods import ENGINE_ID_KEY
from enginery._reasons import DeliveryError
from enginery._rpc import engine_stub
from enginery.v1 import engine_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from enginery._link import Link
    from enginery.operation import Operation
    from enginery.operations import Feed

logger = logging.getLogger("enginery")

_FIRST_DELAY = 0.1  # seconds before a call that did not arrive is made again
_GROWTH = 1.5
_LONGEST_DELAY = 2.0
_PASSING = frozenset({"CONTROLLER_LOST", "ENGINE_AWAY", "SHUTTING_DOWN", "QUEUE_FULL"})
_ELSEWHERE = frozenset({"INVALID_ENGINE_ID", "NO_ENGINES_REGISTERED", "ENGINE_LOST", "OPERATION_NOT_FOUND"})
_ANSWER_TIME = 30.0  # seconds for the controller to answer what it need not wait for
_HEARING_TIME = 5.0  # seconds for it to hear of a change
_WAIT = 50.0  # seconds that one call waits for the end of an operation


class OperationCalls:
    """GetOperation, ListOperations, Attach and Release over a client's connection, whichever it is by then."""

    def __init__(self, link: Link) -> None:
        """Use the connections of `link`."""
        self._link = link

    async def get(
        self, operation_id: str, engine_id: int | None, *, wait: float = 0.0, after: int | None = None
    ) -> operation_pb2.GetOperationResponse:
        """Return an operation, after waiting up to `wait` seconds for its end, with its events after `after`.

        The engine, if given, is asked first; if it does not know it everybody is.
        """
        request = operation_pb2.GetOperationRequest(operation_id=operation_id, after_sequence=after)
        request.wait.FromNanoseconds(round(wait * 1e9))
        response: operation_pb2.GetOperationResponse = await self._call(
            "GetOperation", request, engine_id, wait
        )
        return response

    async def events(self, operation_id: str, engine_id: int | None) -> list[operation_pb2.OperationEvent]:
        """Return what has happened to an operation so far, its outcome left out."""
        events: list[operation_pb2.OperationEvent] = []
        after = 0
        while True:
            response = await self.get(operation_id, engine_id, after=after)
            events += response.events
            if not response.events:
                return events
            after = response.events[-1].sequence

    async def list(
        self, request: operation_pb2.ListOperationsRequest, engine_id: int | None
    ) -> operation_pb2.ListOperationsResponse:
        """Return a page of operations, of one engine or of all."""
        response: operation_pb2.ListOperationsResponse = await self._call("ListOperations", request, engine_id)
        if response.next_page_token and response.next_page_token == request.page_token:
            raise DeliveryError("PROTOCOL_ERROR", cause="a list of operations does not go on")
        return response

    async def release(self, operation_id: str) -> None:
        """Say that the answer and output of an operation are not needed any more."""
        await self._call("Release", operation_pb2.ReleaseRequest(operation_ids=[operation_id]), None)

    async def heard(self, engine_id: int) -> None:
        """Return when the controller has heard of what an engine's host told it, or cannot be asked now: a host
        tells that before it answers, and a controller that comes back anew."""
        if not self._link.connected:
            return
        try:
            stub, metadata = await self._stub(engine_id)
            await stub.GetId(engine_pb2.GetIdRequest(), metadata=metadata, timeout=_HEARING_TIME)
        except (DeliveryError, grpc.aio.AioRpcError) as error:
            logger.debug("the controller may not have heard of a change: %s", translated(error).text)

    async def _call(self, name: str, request: Message, engine_id: int | None, wait: float = 0.0) -> Any:
        patience = _Patience(self._link.reconnect_timeout)
        while True:
            try:
                stub, metadata = await self._stub(engine_id)
                return await getattr(stub, name)(request, metadata=metadata, timeout=wait + _ANSWER_TIME)
            except (Exception, asyncio.CancelledError) as error:
                failure = _passing(error)
            if failure.reason in _ELSEWHERE and engine_id is not None:
                engine_id = None
            elif failure.reason in _PASSING:
                await patience.wait(failure)
            else:
                raise failure

    async def _stub(self, engine_id: int | None) -> tuple[Any, tuple[tuple[str, str], ...]]:
        connection = await self._link.connection()
        metadata = connection.info.metadata
        if engine_id is not None:
            metadata = (*metadata, (ENGINE_ID_KEY, str(engine_id)))
        return engine_stub(connection.channels[0]), metadata

    # ---- following

    async def recall(self, operation: Operation[Any]) -> None:
        """Wait for the end of an operation that was begun elsewhere, and hand its answer over."""
        try:
            while True:
                began = time.monotonic()
                response = await self.get(operation.operation_id, operation.asked_engine, wait=_WAIT)
                if response.HasField("outcome"):
                    break
                if time.monotonic() - began < 1:  # it did not wait
                    await asyncio.sleep(_FIRST_DELAY)
            if response.operation.attempts:
                operation.ran(response.operation.engine_id, response.operation.attempts)
            outcome, message = _recall.answer_of(response.outcome)
        except asyncio.CancelledError:
            operation.fail(DeliveryError("CONTROLLER_LOST", cause="this client was closed"))
            raise
        except Exception as error:
            operation.fail(translated(error))
        else:
            self._link.answering.answer(operation, outcome, message)

    async def follow(
        self, feed: Feed, operation_id: str, engine_id: int | None, after: int, is_expected: Callable[[], bool]
    ) -> None:
        """Put the events of an operation after `after` into `feed`, until it has ended or the feed was closed.

        While it `is_expected` that nobody knows it is no error: its call is on the way.
        """
        patience = _Patience(self._link.reconnect_timeout)
        try:
            while not feed.is_closed:
                try:
                    stub, metadata = await self._stub(engine_id)
                    request = operation_pb2.AttachRequest(operation_id=operation_id, after_sequence=after)
                    call = stub.Attach(request, metadata=metadata)
                    feed.hang_up = call.cancel
                    while (batch := await call.read()) is not grpc.aio.EOF:
                        if not batch.events:
                            continue
                        patience.reset()
                        after = batch.events[-1].sequence
                        await feed.put(batch)
                        if batch.events[-1].HasField("outcome"):
                            feed.end(None)
                            return
                    failure = DeliveryError("CONTROLLER_LOST", cause="the stream ended")
                except (Exception, asyncio.CancelledError) as error:
                    failure = _passing(error)
                if failure.reason in _ELSEWHERE and engine_id is not None and not is_expected():
                    engine_id = None
                elif failure.reason == "OPERATION_NOT_FOUND" and is_expected():
                    patience.extend()
                    await patience.wait(failure)
                elif failure.reason in _PASSING:
                    await patience.wait(failure)
                else:
                    raise failure
            feed.end(None)
        except DeliveryError as error:
            feed.end(error)
        except asyncio.CancelledError:
            feed.end(DeliveryError("CONTROLLER_LOST", cause="this client was closed"))
            raise


class _Patience:
    """Growing delays, up to a limit on all of them together."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        """Begin anew: something arrived."""
        self._delay = _FIRST_DELAY
        self.extend()

    def extend(self) -> None:
        """Begin to count anew, and go on with the delays."""
        self._until = time.monotonic() + self._limit

    async def wait(self, failure: DeliveryError) -> None:
        """Wait before the next attempt; raise `failure` if there were enough of them."""
        if time.monotonic() >= self._until:
            raise failure
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * _GROWTH, _LONGEST_DELAY)


def _passing(error: BaseException) -> DeliveryError:
    """Return a failed call as an error of the table; one without an answer in time is a lost connection."""
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        failure = translated(error)
        return DeliveryError("CONTROLLER_LOST", cause="no answer") if failure.reason == "INTERNAL" else failure
    return translated(error)
