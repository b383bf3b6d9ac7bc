"""The client: a connection to one controller, and views of its engines."""

from __future__ import annotations

import operator
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, SupportsIndex, TypeVar, overload

from enginery import _calls, _connection_file, _find, _ids, _options, _parts, _recall, _times
from enginery._diagnose import diagnose
from enginery._errors_setting import ErrorsSetting, check_errors
from enginery._link import Link
from enginery._methods import ANY_ENGINE
from enginery._old_names import OF_CLIENTS, OldNames
from enginery._reasons import DeliveryError, public
from enginery.engines import EngineInfo
from enginery.engines import from_message as engine_info
from enginery.errors import (
    ConnectError,
    ControllerLost,
    EngineryError,
    InvalidEngineID,
    NoEnginesRegistered,
)
from enginery.group import gather
from enginery.operation import Operation, wait_for
from enginery.operations import OperationInfo, from_message, state_numbers
from enginery.tasks import TaskCalls, TaskView
from enginery.v1 import operation_pb2
from enginery.view import EngineView
from enginery.views import EnginesView

if TYPE_CHECKING:
    import os
    from types import ModuleType, TracebackType

    from enginery._decode import Errors
    from enginery._task_options import After
    from enginery.cluster import Cluster

T = TypeVar("T")

_STOPPING = 10.0  # seconds for a killed engine to be unregistered


def connect(
    connection_file: str | os.PathLike[str] | None = None,
    *,
    timeout: float = 10.0,
    reconnect_timeout: float = 60.0,
    errors: Errors = "raise",
    direct: bool = True,
) -> Client:
    """Return a client of a running controller.

    `connection_file` is its `client.json`, or the state directory that holds one; it is waited for. Without it
    the cluster is the one of `ENGINERY_STATE_DIR`, or the only one of this user that runs here.

    `timeout` in seconds bounds the wait for the first connection. If the connection breaks later, the client
    opens it again by itself, and calls that wait go on; they end with ControllerLost if there is no controller
    for `reconnect_timeout` seconds.
    `errors="raise"` raises what user code raised on an engine as its original type, from a RemoteError with the
    remote traceback; `errors="wrap"` raises RemoteError and never unpickles an exception.
    `direct` lets calls go to the hosts of their engines where their ports are reached, past the controller,
    which is faster and otherwise the same.

    Raises ConnectError, as ControllerNotRunning, SeveralClusters, ConnectionFileError, CertificateError or
    AuthenticationError, each saying what to do; FileTimeoutError if a named file does not appear.
    """
    _times.check("timeout", timeout)
    _times.check("reconnect_timeout", reconnect_timeout)
    check_errors(errors)
    started = time.monotonic()
    path = _find.find(connection_file, timeout)
    info = _connection_file.read(path, "client")
    link = Link(lambda: _connection_file.read(path, "client"), timeout, reconnect_timeout, direct=direct)
    try:
        link.run(link.start(), max(0.1, timeout - (time.monotonic() - started)) + 1.0)
    except (EngineryError, TimeoutError) as error:
        if isinstance(error, ConnectError) and not isinstance(error, ControllerLost):
            raise
        raise diagnose(info) from error
    return Client(link, errors)


class Client(TaskCalls, OldNames):
    """A connection to one controller.

    Indexing gives views of engines: `client[0]` one engine, whose answers are single values; `client[:]` and
    `client[[0, 2]]` several that are fixed now, whose answers are lists; `client["all"]` whichever there are at
    the time of each call. It may be used from several threads, and while an asyncio loop runs. It reconnects by
    itself.
    """

    _old_names = OF_CLIENTS
    errors = ErrorsSetting()
    """How errors of user code are raised by views that are made from now on; see `connect`."""

    def __init__(self, link: Link, errors: Errors) -> None:
        """Made by `connect`, or by `Cluster`."""
        self._link = link
        self.errors = errors
        self._block = True
        self._cluster: Cluster | None = None  # the one that it belongs to, which would end if it were dropped
        # A client that is dropped ends its connection; the end of the process is the loop thread's affair.
        self._finalizer = weakref.finalize(self, _abandon, link)
        self._finalizer.atexit = False

    @property
    def block(self) -> bool:
        """Whether calls of views that do not say so wait for their answer."""
        return self._block

    @block.setter
    def block(self, block: bool) -> None:
        self._block = bool(_options.flag("block", block))

    # ---- engines

    @property
    def ids(self) -> list[int]:
        """Ids of the registered engines, rising; those whose connection is lost for now included."""
        return self._link.roster.ids

    @property
    def engines(self) -> list[EngineInfo]:
        """What is known of each registered engine, by rising id."""
        return self._link.roster.engines

    def __len__(self) -> int:
        """Return how many engines are registered."""
        return len(self.ids)

    def __bool__(self) -> bool:
        """Return True: a client is something even while there are no engines."""
        return True

    def __iter__(self) -> Iterator[EngineView]:
        """Iterate over a view of each engine there is now."""
        return iter([EngineView(self, engine_id, self.errors) for engine_id in self.ids])

    def __contains__(self, engine_id: object) -> bool:
        """Return whether an engine of that id is registered."""
        return engine_id in self.ids

    def wait_for_engines(self, n: int = 1, timeout: float = 60.0) -> list[int]:
        """Wait until at least `n` engines are registered and return their ids.

        TimeoutError after `timeout` seconds. It blocks; in a coroutine use `asyncio.to_thread`.
        """
        self._check_open()
        roster = self._link.roster
        if not roster.wait(lambda: len(roster.ids) >= n or self._link.closed, timeout):
            raise TimeoutError(
                f"{len(roster.ids)} of {n} engines are registered after {timeout:g} s: {roster.ids}"
            )
        self._check_open()
        return roster.ids

    @overload
    def __getitem__(self, key: SupportsIndex) -> EngineView: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Literal["all"]) -> EnginesView: ...
    def __getitem__(
        self, key: SupportsIndex | slice | Sequence[int] | Literal["all"]
    ) -> EngineView | EnginesView:
        """Return a view: of one engine for an id, else of several.

        A slice counts positions in `ids`, a sequence or an array names ids, "all" follows the engines; no id is
        negative, so `client[-1]` is the last engine there is. InvalidEngineID if there is no such engine now;
        NoEnginesRegistered if there is none at all.
        """
        ids = self.ids
        if isinstance(key, str):
            if key != "all":
                raise TypeError(f'engines are named by id, slice, list of ids or "all", not {key!r}')
            return EnginesView(self, None, self.errors)
        if isinstance(key, slice):
            return EnginesView(self, self._known(ids[key], ids, f"[{_slice_text(key)}]"), self.errors)
        if isinstance(key, Sequence) or _parts.has_rows(key):
            wanted = [_engine_id(item) for item in key]  # type: ignore[union-attr]  # or it is an array
            if len(set(wanted)) != len(wanted):
                raise ValueError(f"an engine is named twice: {wanted}")
            return EnginesView(self, self._known(wanted, ids, "an empty list"), self.errors)
        engine_id = _engine_id(key)
        if -len(ids) <= engine_id < 0:
            engine_id = ids[engine_id]
        self._known([engine_id], ids, "")
        return EngineView(self, engine_id, self.errors)

    def _known(self, wanted: list[int], ids: list[int], empty: str) -> list[int]:
        self._check_open()
        if not ids:
            raise NoEnginesRegistered("no engine is registered: start one with `enginery engine`")
        there = f"there are: {', '.join(map(str, ids))}"
        for engine_id in wanted:
            if engine_id not in ids:
                raise InvalidEngineID(f"no engine {engine_id}; {there}", engine_id=engine_id)
        if not wanted:
            raise InvalidEngineID(f"{empty} selects no engine; {there}")
        return wanted

    # ---- tasks

    def tasks(
        self,
        *,
        retries: int | None = None,
        where: Mapping[str, object] | None = None,
        priority: int | None = None,
        after: After | None = None,
        after_any_outcome: bool | None = None,
        placement_timeout: float | None = None,
        label: str | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        errors: Errors | None = None,
    ) -> TaskView:
        """Return a view of any engine, whose tasks have these settings; see `TaskView.options`."""
        return TaskView(self, self.errors).options(
            retries=retries,
            where=where,
            priority=priority,
            after=after,
            after_any_outcome=after_any_outcome,
            placement_timeout=placement_timeout,
            label=label,
            timeout=timeout,
            grace=grace,
            interrupt_only=interrupt_only,
            errors=errors,
        )

    def _tasks(self) -> TaskView:
        return TaskView(self, self.errors)

    # ---- operations

    def operation(self, operation_id: str) -> Operation[Any]:
        """Return an operation by its id, whoever began it: to wait for it, read its output, stop it.

        Its answer is that of its call; what `pull` and its like return comes as a dictionary by name.
        OperationNotFound if nobody knows it (any more); ValueError if `operation_id` is not a UUID.
        """
        self._check_open()
        key = _ids.parse(operation_id)
        link = self._link
        info = link.run(link.operations.get(_ids.show(key), None)).operation
        try:
            request = _recall.request_of(info.method)
        except DeliveryError as error:
            raise public(error) from None
        request.owner = self
        operation: Operation[Any] = Operation(request, info.engine_id, key, self.errors)
        operation.asked_engine = None  # it may have gone, and the journal know the answer
        if info.attempts:
            operation.target = ANY_ENGINE  # a task: it may go on elsewhere
        link.recall(operation)
        return operation

    def operations(
        self,
        *,
        engine_id: int | None = None,
        state: str | Sequence[str] | None = None,
        session_id: str | None = None,
        limit: int = 100,
    ) -> list[OperationInfo]:
        """Return at most `limit` operations, the newest first: those that engines know, of all or of one, then
        those that only the journal knows.

        `state` is `queued`, `running`, `succeeded`, `failed`, `cancelled`, `timed_out` or `lost`, or several.
        """
        self._check_open()
        if limit < 1:
            raise ValueError(f"limit is {limit}: at least one operation must be asked for")
        states = [] if state is None else state_numbers(state if isinstance(state, str) else list(state))
        request = operation_pb2.ListOperationsRequest(states=states, session_id=session_id or "")
        found: dict[str, OperationInfo] = {}  # by id: what an engine lets go meanwhile is on a later page again
        while len(found) < limit:
            request.page_size = min(limit - len(found), 1000)
            page = self._link.run(self._link.operations.list(request, engine_id))
            for one in page.operations:
                # An engine that is gone is not asked: everybody is, and so the journal.
                if engine_id in (None, one.engine_id):
                    found.setdefault(one.operation_id, from_message(one))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return list(found.values())[:limit]

    # ---- modules

    def upload_module(self, module: str | os.PathLike[str] | ModuleType) -> str:
        """Send a module of this machine to every engine, and import it there; return its name.

        `module` is a `.py` file, the folder of a package, data files included, or a module that was imported
        here, whose whole package goes; modules of yours that it imports go along if they are small. It is read
        from the files as they are now, and takes the place of whatever an engine has under its name; so after
        an edit, upload it again. Names of an engine's namespace that meant the module, or a function or class
        of it, then mean the new one; objects that were made keep their class. Engines that register later, and
        new kernels, are sent it by this client while it is open.

        What the import raises on an engine is raised here, and leaves that engine as it was. FileNotFoundError,
        ValueError or ValueTooLarge (over 64 MiB), before anything is sent, if it is no module that can be sent:
        compiled ones cannot. Small modules that functions or objects refer to go along without: see the guide.
        """
        from enginery import _own_modules  # few clients need it

        self._check_open()
        sources = _own_modules.read(module)
        operations = self._link.modules.upload(sources, self, self.errors)
        try:
            wait_for(operations)
            gather(operations)
        except Exception:
            self._link.modules.forget(sources)
            raise
        return sources[0].name

    # ---- calls, for views

    def _start(
        self, request: _calls.Request[T], engine_ids: Sequence[int], errors: Errors
    ) -> list[Operation[T]]:
        """Send a call to each engine at once. For views."""
        request.owner = self
        return self._link.submit(request, engine_ids, errors)

    def _kernels(self, engine_ids: list[int]) -> dict[int, str]:
        """Return the incarnation of each of the engines that is there. For views."""
        return self._link.roster.incarnations(engine_ids)

    def _wait_until_gone(self, kernels: dict[int, str]) -> None:
        """Wait until none of these incarnations is registered; TimeoutError after 10 s. For views."""
        roster = self._link.roster
        ids = list(kernels)

        def gone() -> bool:
            now = roster.incarnations(ids)
            return not self._link.connected or all(now.get(i) != kernels[i] for i in ids)

        if not roster.wait(gone, _STOPPING):
            raise TimeoutError(
                f"engines {ids} were told to stop and are still registered after {_STOPPING:g} s"
            )

    # ---- the cluster

    @property
    def cluster_id(self) -> str:
        """The cluster, a UUID."""
        return self._link.cluster_id

    def kill(self, *, controller: bool = False) -> None:
        """Stop every engine and, with `controller`, the controller as well, which closes this client."""
        if controller:
            self.shutdown()
            return
        kernels = self._kernels(self.ids)
        gather(self._start(_calls.kill(), list(kernels), self.errors))
        self._wait_until_gone(kernels)

    def lost_engines(self) -> list[EngineInfo]:
        """Return the engines that were lost within the last hour, the newest first, at most 100."""
        self._check_open()
        return [engine_info(engine) for engine in self._link.run(self._link.lost_engines())]

    def shutdown(self, *, keep_engines: bool = False, grace: float = 0.0) -> None:
        """Stop the engines and the controller, and close this client; `keep_engines` stops the controller
        alone. Engines get `grace` seconds to finish what they run."""
        self._check_open()
        _options.seconds("grace", grace)
        self._link.run(self._link.shutdown(keep_engines=keep_engines, grace=grace))
        self.close()

    def statistics(self) -> dict[str, Any]:
        """Return counters of this client: calls, how many of them went directly, messages, replies, what is on
        its way, reconnects; and how many engines are called directly now."""
        session = self._link.session
        return {
            "calls": session.counters.calls,
            "direct_calls": session.counters.direct,
            "messages": session.counters.messages,
            "replies": session.counters.replies,
            "not_delivered": session.counters.failures,
            "refused": session.counters.refusals,
            "resent": session.counters.resent,
            "unsent": session.unsent_count,
            "waiting": session.waiting_count,
            "reconnects": self._link.reconnects,
            "connected": self._link.connected,
            "engines": len(self.ids),
            "direct": len(session.ways),
        }

    # ---- the end

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._link.closed

    def close(self) -> None:
        """Send what was submitted, then end the connection. The engines go on, and so does what runs on them.

        Calls that wait end with ControllerLost. The second time does nothing.
        """
        if not self.closed:
            self._link.run(self._link.close())
            self._finalizer.detach()

    def _check_open(self) -> None:
        if self.closed:
            raise ControllerLost("this client was closed")

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be sent to an engine."""
        raise TypeError("a Client is a connection and cannot be pickled: connect() where it is to be used")

    def __repr__(self) -> str:
        """Show the controller's address, and how many engines there are."""
        info = self._link.info
        address = info.address if info is not None else "nowhere"
        if self.closed:
            state = "closed"
        elif not self._link.connected:
            state = "reconnecting"
        else:
            state = f"{len(self)} engine{'' if len(self) == 1 else 's'}"
        return f"<Client {address}, {state}>"


def _abandon(link: Link) -> None:
    link.abandon()


def _engine_id(key: object) -> int:
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise TypeError(f"an engine's id is an int, not {type(key).__name__}")
    return operator.index(key)


def _slice_text(key: slice) -> str:
    parts = [key.start, key.stop] if key.step is None else [key.start, key.stop, key.step]
    return ":".join("" if part is None else str(part) for part in parts)
