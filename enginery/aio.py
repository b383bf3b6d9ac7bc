"""The client for asyncio: `async with enginery.aconnect() as client`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, SupportsIndex, overload

from enginery.async_operation import AsyncOperation
from enginery.async_tasks import AsyncTaskCalls, AsyncTaskView
from enginery.async_views import AsyncEnginesView, AsyncEngineView, wait_for_engines
from enginery.client import connect
from enginery.view import EngineView

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Sequence
    from types import ModuleType, TracebackType

    from enginery._decode import Errors
    from enginery.client import Client
    from enginery.engines import EngineInfo
    from enginery.operations import OperationInfo
    from enginery.tasks import TaskCalls

_LOOK = 0.005  # seconds between two looks whether there is room again


def aconnect(
    connection_file: str | os.PathLike[str] | None = None,
    *,
    timeout: float = 10.0,
    reconnect_timeout: float = 60.0,
    errors: Errors = "raise",
    direct: bool = True,
) -> Connecting:
    """Return a client for asyncio of a running controller: by `async with aconnect() as client`, which closes
    it at the end, or by `client = await aconnect()`.

    Parameters and errors are those of `connect`.
    """
    options = {"timeout": timeout, "reconnect_timeout": reconnect_timeout, "errors": errors, "direct": direct}
    return Connecting(connection_file, **options)


class Connecting:
    """A connection that is opened when this is awaited, or entered by `async with`."""

    def __init__(self, connection_file: str | os.PathLike[str] | None, **options: Any) -> None:
        """Made by `aconnect`."""
        self._connection_file = connection_file
        self._options = options
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, None, AsyncClient]:
        """Open it and return the client."""
        return self._open().__await__()

    async def _open(self) -> AsyncClient:
        # In a thread: it reads and waits for files, and loads gRPC.
        return AsyncClient(await asyncio.to_thread(connect, self._connection_file, **self._options))

    async def __aenter__(self) -> AsyncClient:
        """Open it and return the client."""
        self._client = await self._open()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.close()


class AsyncClient(AsyncTaskCalls):
    """A connection to one controller, for asyncio.

    `client[0]`, `client[:]`, `client[[0, 2]]` and `client["all"]` are views as those of Client, whose calls are
    awaited. A call is sent when it is made, in the order in which calls are made, and nothing blocks the loop:
    whatever takes long is done by other threads. It may be used from any loop of the process. As with Client, a
    call of a view that fails clears what this client had queued behind it on that engine: coroutines that are
    none of each other's business use `view.options(keep_queue=True)`, tasks, or a client each.
    """

    def __init__(self, client: Client) -> None:
        """Made by `aconnect`. `client` is used by nobody else."""
        self._client = client
        client._link.session.room.never_wait()

    # ---- engines

    @property
    def errors(self) -> Errors:
        """How errors of user code are raised; see `connect`."""
        return self._client.errors

    @property
    def ids(self) -> list[int]:
        """Ids of the registered engines, rising."""
        return self._client.ids

    @property
    def engines(self) -> list[EngineInfo]:
        """What is known of each registered engine, by rising id."""
        return self._client.engines

    def __len__(self) -> int:
        """Return how many engines are registered."""
        return len(self._client)

    def __bool__(self) -> bool:
        """Return True: a client is something even while there are no engines."""
        return True

    def __iter__(self) -> Iterator[AsyncEngineView]:
        """Iterate over a view of each engine there is now."""
        return iter([AsyncEngineView(view) for view in self._client])

    def __contains__(self, engine_id: object) -> bool:
        """Return whether an engine of that id is registered."""
        return engine_id in self._client

    async def wait_for_engines(self, n: int = 1, timeout: float = 60.0) -> list[int]:
        """Wait until at least `n` engines are registered and return their ids; TimeoutError after `timeout`
        seconds."""
        return await wait_for_engines(self._client, n, timeout)

    @overload
    def __getitem__(self, key: SupportsIndex) -> AsyncEngineView: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Literal["all"]) -> AsyncEnginesView: ...
    def __getitem__(
        self, key: SupportsIndex | slice | Sequence[int] | Literal["all"]
    ) -> AsyncEngineView | AsyncEnginesView:
        """Return a view: of one engine for an id, else of several; see `Client`."""
        view = self._client[key]
        return AsyncEngineView(view) if isinstance(view, EngineView) else AsyncEnginesView(view)

    # ---- tasks

    def tasks(self, **options: Any) -> AsyncTaskView:
        """Return a view of any engine, whose tasks have these settings; see `AsyncTaskView.options`."""
        return AsyncTaskView(self._client.tasks()).options(**options)

    def _calls(self) -> TaskCalls:
        return self._client

    # ---- operations

    async def operation(self, operation_id: str) -> AsyncOperation[Any]:
        """Return an operation by its id, whoever began it; see `Client.operation`."""
        return AsyncOperation(await asyncio.to_thread(self._client.operation, operation_id))

    async def operations(
        self,
        *,
        engine_id: int | None = None,
        state: str | Sequence[str] | None = None,
        session_id: str | None = None,
        limit: int = 100,
    ) -> list[OperationInfo]:
        """Return at most `limit` operations, the newest first; see `Client.operations`."""
        return await asyncio.to_thread(
            self._client.operations, engine_id=engine_id, state=state, session_id=session_id, limit=limit
        )

    async def drain(self) -> None:
        """Wait while a great many calls are unsent or unanswered.

        Calls never wait by themselves: whoever makes them without end awaits this between them, or QueueFull is
        raised above a million unsent ones or 1 GiB.
        """
        session = self._client._link.session
        while not session.room.is_there and not self.closed:  # noqa: ASYNC110 - an event would cost every call
            await asyncio.sleep(_LOOK)

    # ---- the cluster

    @property
    def cluster_id(self) -> str:
        """The cluster, a UUID."""
        return self._client.cluster_id

    async def upload_module(self, module: str | os.PathLike[str] | ModuleType) -> str:
        """Send a module of this machine to every engine, and import it there; see `Client.upload_module`."""
        return await asyncio.to_thread(self._client.upload_module, module)

    async def kill(self, *, controller: bool = False) -> None:
        """Stop every engine and, with `controller`, the controller as well, which closes this client."""
        if controller:
            await self.shutdown()
        elif self.ids:
            await self["all"].kill()

    async def lost_engines(self) -> list[EngineInfo]:
        """Return the engines that were lost within the last hour; see `Client.lost_engines`."""
        return await asyncio.to_thread(self._client.lost_engines)

    async def shutdown(self, *, keep_engines: bool = False, grace: float = 0.0) -> None:
        """Stop the engines and the controller, and close this client; see `Client.shutdown`."""
        await asyncio.to_thread(self._client.shutdown, keep_engines=keep_engines, grace=grace)

    def statistics(self) -> dict[str, Any]:
        """Return counters of this client; see `Client.statistics`."""
        return self._client.statistics()

    # ---- the end

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._client.closed

    async def close(self) -> None:
        """Send what was submitted, then end the connection; see `Client.close`."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        await self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to an engine."""
        raise TypeError(
            "an AsyncClient is a connection and cannot be pickled: aconnect() where it is to be used"
        )

    def __repr__(self) -> str:
        """Show the controller's address, and how many engines there are."""
        return f"<Async{repr(self._client)[1:]}"
