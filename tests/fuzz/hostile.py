"""Channels to a controller and a host that say what an input tells them to, in the place of gRPC's.

What gRPC does with a message that cannot be read, a status, or a call that has ended, these do too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import grpc
import grpc._common
import grpc.aio

from enginery._methods import ENGINE_ID_KEY
from enginery._status import DETAILS_KEY
from enginery.v1 import cluster_pb2, engine_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

CONTROLLER = "127.0.0.1:7"
CLUSTER = "c"
MAX_OPENINGS = 12
"""Calls that are answered well for one input: a client whose streams break at once opens them for ever."""
_CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


class Ending:
    """What ends a call: the end of its stream, or a status."""

    def __init__(self, code: int, status: bytes) -> None:
        """Take a number of a status, 0 for none, and the bytes of its details."""
        self.code, self.status = code % (len(_CODES) + 1), status

    def error(self) -> grpc.aio.AioRpcError | None:
        """Return what reading raises; None at the end of a stream."""
        if not self.code:
            return None
        trailing = grpc.aio.Metadata((DETAILS_KEY, self.status)) if self.status else grpc.aio.Metadata()
        text = self.status.decode("latin-1")[:300]
        return grpc.aio.AioRpcError(_CODES[self.code - 1], grpc.aio.Metadata(), trailing, text)


Said = bytes | Ending


class Script:
    """What is said on the calls of each method, in turn, however often they are opened; then nothing is."""

    def __init__(self, *, is_well_known: bool) -> None:
        """Say nothing yet. One that `is_well_known` opens streams as it should, and names its engines."""
        self._is_well_known = is_well_known
        self._said: dict[str, deque[Said]] = defaultdict(deque)
        self._openings = 0
        self._more = asyncio.Event()

    def add(self, method: str, said: Said) -> None:
        """Say this on a call of `method`, behind what is there."""
        self._said[method].append(said)
        self.wake()

    def opening(self, method: str, metadata: Sequence[tuple[str, str]]) -> list[Said]:
        """Return what a new call hears before all else."""
        self._openings += 1
        if not self._is_well_known or self._openings > MAX_OPENINGS:
            return []
        match method.rpartition("/")[2]:
            case "Session":
                welcome = cluster_pb2.SessionWelcome(cluster_id=CLUSTER, controller_epoch=3)
                return [cluster_pb2.SessionResponse(welcome=welcome).SerializeToString()]
            case "WatchEngines":
                return [snapshot()]
            case "GetId" if method.startswith("host"):
                engine_id = int(dict(metadata)[ENGINE_ID_KEY])
                answer = engine_pb2.GetIdResponse(engine_id=engine_id, incarnation=f"i{engine_id}")
                return [answer.SerializeToString()]
        return []

    def next(self, method: str) -> Said | None:
        """Return what is said next; None if there is nothing."""
        return self._said[method].popleft() if self._said[method] else None

    def wake(self) -> None:
        """Have everybody look again."""
        self._more.set()

    async def more(self) -> None:
        """Wait until something is said again."""
        self._more.clear()
        await self._more.wait()


def snapshot() -> bytes:
    """Return two engines, the first of them with a port of its own."""
    events = [
        cluster_pb2.EngineEvent(
            kind=cluster_pb2.ENGINE_EVENT_KIND_REGISTERED,
            engine=cluster_pb2.Engine(
                engine_id=number,
                incarnation=f"i{number}",
                epoch=7,
                state=cluster_pb2.ENGINE_STATE_READY,
                direct_addresses=["127.0.0.1:8"] if number == 0 else [],
            ),
        )
        for number in (0, 1)
    ]
    return cluster_pb2.WatchEnginesResponse(snapshot=True, events=events).SerializeToString()


class Call:
    """One call of any kind, as a client holds it."""

    def __init__(
        self,
        script: Script,
        method: str,
        metadata: Sequence[tuple[str, str]],
        deserialize: Callable[[bytes], Any] | None,
        requests: AsyncIterator[bytes] | None = None,
    ) -> None:
        self._script = script
        self._method = method
        self._deserialize = deserialize
        self._heard = deque(script.opening(method, metadata))
        self._requests = requests
        self._ended: BaseException | None = None
        self._is_over = False

    async def _next(self) -> Any:
        """Return the next message, EOF at the end."""
        if self._ended is not None:
            raise self._ended
        if self._is_over:
            return grpc.aio.EOF
        while (said := self._heard.popleft() if self._heard else self._script.next(self._method)) is None:
            await self._script.more()
            if self._ended is not None:
                raise self._ended
        if isinstance(said, Ending):
            self._is_over = True
            self._ended = said.error()
            if self._ended is not None:
                raise self._ended
            return grpc.aio.EOF
        return grpc._common.deserialize(said, self._deserialize)

    async def read(self) -> Any:
        await asyncio.sleep(0)
        return await self._next()

    async def write(self, _: object) -> None:
        await asyncio.sleep(0)
        if self._ended is not None or self._is_over:
            raise self._ended or asyncio.InvalidStateError("RPC already finished.")

    async def done_writing(self) -> None:
        """Nothing follows."""

    def done(self) -> bool:
        return self._ended is not None or self._is_over

    def cancel(self) -> bool:
        if self.done():
            return False
        self._ended = asyncio.CancelledError()
        self._script.wake()
        return True

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    def __await__(self) -> Any:
        return self._response().__await__()

    async def _response(self) -> Any:
        if self._requests is not None:
            async for _ in self._requests:
                await asyncio.sleep(0)
        message = await self.read()
        if message is grpc.aio.EOF:  # which gRPC makes a status of
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "no message"
            )
        return message


class HostileChannel:
    """A channel to whoever is at an address: the controller, or a host."""

    def __init__(self, script: Script, address: str) -> None:
        """Have `script` say what is heard."""
        self._script = script
        self._who = "controller" if address == CONTROLLER else "host"
        self._calls: list[Call] = []

    def _stream(self, method: str, response_deserializer: Any = None, **_: object) -> Any:
        def call(
            *requests: Any, metadata: Sequence[tuple[str, str]] = (), timeout: float | None = None
        ) -> Call:
            sent = requests[0] if requests and hasattr(requests[0], "__aiter__") else None
            made = Call(self._script, f"{self._who}{method}", metadata, response_deserializer, sent)
            self._calls.append(made)
            return made

        return call

    unary_unary = unary_stream = stream_unary = stream_stream = _stream

    def get_state(self, *, try_to_connect: bool) -> None:
        """There is nothing to connect."""

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
