"""A client's link: what a controller and a host say to it, as a whole. Nothing is unpickled here.

An input is a byte of flags and messages, each behind its length. The first byte of one says on whose calls of
which method it is heard, the second whether it is a message or how the call ends. Meanwhile the client calls,
moves large values, asks about operations and engines, and closes. A message that is a pause is no message: what
is behind it is heard when the client has called again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc.aio

from enginery import _address, _calls, _connection, _direct, _link, _loop, _operation_calls, _uploading, _values
from enginery import operations as operations_module
from enginery._connection_file import ConnectionInfo
from enginery._encoded import Codec, Encoded
from enginery._methods import ANY_ENGINE, METHODS
from enginery._reasons import TABLE, DeliveryError, public
from enginery._status import to_bytes
from enginery.errors import EngineryError
from enginery.operation import Operation
from enginery.operations import Feed
from enginery.v1 import cluster_pb2, engine_pb2, frame_pb2, operation_pb2
from tests.fuzz import mutator
from tests.fuzz.hostile import CLUSTER, CONTROLLER, Ending, HostileChannel, Script, snapshot
from tests.fuzz.loop import Loop, turns
from tests.fuzz.reply_target import ReplyTarget, show
from tests.fuzz.rules import SECRET, BrokenRule, Watch, check_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from random import Random

    from google.protobuf.message import Message

_CLUSTER: Any = cluster_pb2  # to make messages of plain fields, which their types do not tell of
_ENGINE: Any = engine_pb2
_OPERATION: Any = operation_pb2
_SESSIONS = "/enginery.v1.ClusterService/"
_ENGINES = "/enginery.v1.EngineService/"
_HEARD: list[tuple[str, type[Message]]] = [
    (f"controller{_SESSIONS}Session", cluster_pb2.SessionResponse),
    (f"host{_SESSIONS}Session", cluster_pb2.SessionResponse),
    (f"controller{_SESSIONS}WatchEngines", cluster_pb2.WatchEnginesResponse),
    (f"controller{_ENGINES}Download", engine_pb2.DownloadResponse),
    (f"host{_ENGINES}Download", engine_pb2.DownloadResponse),
    (f"controller{_ENGINES}Upload", engine_pb2.UploadResponse),
    (f"host{_ENGINES}Upload", engine_pb2.UploadResponse),
    (f"controller{_ENGINES}GetId", engine_pb2.GetIdResponse),
    (f"host{_ENGINES}GetId", engine_pb2.GetIdResponse),
    (f"controller{_ENGINES}GetOperation", operation_pb2.GetOperationResponse),
    (f"controller{_ENGINES}ListOperations", operation_pb2.ListOperationsResponse),
    (f"controller{_ENGINES}Attach", operation_pb2.AttachResponse),
    (f"controller{_SESSIONS}ListEngines", cluster_pb2.ListEnginesResponse),
    (f"controller{_SESSIONS}GetClusterInfo", cluster_pb2.GetClusterInfoResponse),
    (f"controller{_ENGINES}Release", operation_pb2.ReleaseResponse),
]
_WHO = ("controller", "host")
_NUMBERS = {method: number for number, (method, _) in enumerate(_HEARD)}
_NEW, _WELL_KNOWN = 1, 0
_PAUSE = b"\xff"
_TURNS = 60  # of the loop, after which whatever was said was heard
_OPERATION_ID = "01020304-0506-0708-090a-0b0c0d0e0f10"
_BLOB = Encoded(Codec.PICKLE, (b"x" * 70,), python_version="3.11.7")
_PATIENCE = 0.02  # seconds that the client waits for a connection


def _said(method: str, message: Message) -> bytes:
    return bytes((_NUMBERS[method], 0)) + message.SerializeToString()


def _ends(method: str, code: int, reason: str = "", offset: object = 3) -> bytes:
    error = DeliveryError(reason, engine_id=0, blob_id="b", offset=offset, size=9) if reason else None
    details = to_bytes(error) if error else b""
    return bytes((_NUMBERS[method], 1, code)) + details


def _replies(method: str, *replies: dict[str, Any]) -> bytes:
    return _said(method, _CLUSTER.SessionResponse(replies=replies))


def _seeds() -> list[bytes]:
    relay, host, watch = (method for method, _ in _HEARD[:3])
    download = f"controller{_ENGINES}Download"
    blob = _values.describe("b", _BLOB)
    pulled = _ENGINE.PullResponse(blob=blob).SerializeToString()
    shown = {"data": [{"mime_type": "image/png", "blob": blob}]}
    executed = _ENGINE.ExecuteResponse(result={"number": 1, "displays": [shown]}).SerializeToString()
    good = [{"call_id": number, "outcome": 1} for number in range(1, 6)]
    later = [{"call_id": number, "outcome": 1} for number in range(6, 14)]
    uploaded = [_said(f"{who}{_ENGINES}Upload", _ENGINE.UploadResponse(engine_ids=[0, 1])) for who in _WHO]
    named = [
        {"call_id": 1, "outcome": 1, "response": executed},
        {"call_id": 4, "outcome": 1, "response": pulled},
    ]
    refused = [
        {"call_id": number, "outcome": 7, "error": to_bytes(DeliveryError(reason, engine_id=0, size=1))}
        for number, reason in enumerate(("QUEUE_FULL", "ENGINE_AWAY", "INVALID_ENGINE_ID", "FENCED"), 1)
    ]
    chunk = _ENGINE.DownloadResponse(chunk={"data": b"x" * 70})
    half = _ENGINE.DownloadResponse(chunk={"data": b"x" * 35, "crc32": 1})
    events = [
        {"kind": kind, "engine": {"engine_id": 0, "epoch": 9, "incarnation": "j", "direct_addresses": ["h:1"]}}
        for kind in (1, 2, 3, 4, 5)
    ]
    ended = {"state": 3, "response": {"type_url": "t/enginery.v1.ExecuteResponse", "value": executed}}
    asked = {"operation_id": _OPERATION_ID, "state": 3, "method": "execute", "engine_id": 0}
    told = [
        {"sequence": 1, "started": {"incarnation": "i0"}},
        {"sequence": 2, "stdout": "out"},
        {"sequence": 3, "progress": {"fraction": 0.5, "text": "half"}},
        {"sequence": 4, "dropped": {"event_count": 2}},
        {"sequence": 5, "display": shown},
        {"sequence": 6, "outcome": ended},
    ]
    got = _OPERATION.GetOperationResponse(operation=asked, outcome=ended, events=told)
    elsewhere = [
        {"kind": 1, "engine": {"engine_id": 0, "epoch": 9, "incarnation": "i0", "direct_addresses": [one] * 99}}
        for one in ("unix:/socket:7", "xds:///h:7", "h", "")
    ]
    odd = [
        {"state": 3, "response": {"type_url": "t/enginery.v1.ExecuteResponse", "value": b"\xff"}},
        {"state": 3, "response": {"type_url": "t/enginery.v1.NoneResponse"}},
        {"state": 4, "error": {"reason": "NONE"}},
        ended,
    ]
    large = [
        _ENGINE.PullResponse(
            blob={"blob_id": "b", "codec": 1, "size": size, "part_sizes": [size]}
        ).SerializeToString()
        for size in (1 << 45, (1 << 63) - 1, (1 << 64) - 1)
    ]
    got_method, listed, attach = (
        f"controller{_ENGINES}{name}" for name in ("GetOperation", "ListOperations", "Attach")
    )
    upload = f"controller{_ENGINES}Upload"
    scripts: list[list[bytes]] = [
        [*uploaded, _replies(relay, *good), _PAUSE, _replies(relay, *later)],
        [*uploaded, _replies(relay, *good), _PAUSE, _replies(host, *later), _replies(relay, *later)],
        [_replies(relay, *refused), _PAUSE, _replies(relay, *good)],
        [
            *uploaded,
            _replies(relay, *good),
            _PAUSE,
            _replies(host, *({**one, "call_id": number} for number, one in enumerate(refused, 6))),
            _replies(relay, *later),
        ],
        [*uploaded, _replies(relay, *good), _PAUSE, _replies(host, *later[:2]), _ends(host, 14), _PAUSE],
        [_replies(relay, *named), _said(download, chunk), _said(download, half), _ends(download, 0)],
        [
            _replies(relay, *named),
            _said(download, half),
            _ends(download, 14, "ENGINE_AWAY"),
            _said(download, half),
        ],
        [_replies(relay, *good[:3]), _ends(relay, 14), _replies(relay, *good)],
        [_replies(relay, *good), _PAUSE, _ends(host, 14), _replies(relay, *later)],
        [_ends(relay, 3, "SUPERSEDED"), _ends(watch, 0), _replies(relay, *good)],
        [_said(watch, _CLUSTER.WatchEnginesResponse(events=events)), _replies(relay, *good)],
        [_said(watch, _CLUSTER.WatchEnginesResponse(events=elsewhere)), _replies(relay, *good)],
        [_said(watch, _CLUSTER.WatchEnginesResponse(snapshot=True)), _replies(relay, *good)],
        [_ends(upload, 10, "UPLOAD_INCOMPLETE"), _said(upload, _ENGINE.UploadResponse(engine_ids=[0]))],
        [_ends(upload, 14), _ends(upload, 10, "UPLOAD_INCOMPLETE", offset="x" * 99)],
        [_ends(upload, 14), _ends(upload, 10, "UPLOAD_INCOMPLETE"), _said(upload, _ENGINE.UploadResponse())],
        [_said(f"host{_ENGINES}GetId", _ENGINE.GetIdResponse(engine_id=0, incarnation="x"))],
        [_said(got_method, got), _said(got_method, _OPERATION.GetOperationResponse(events=told))],
        [_said(got_method, _OPERATION.GetOperationResponse(operation=asked, outcome={"state": 3}))],
        [_ends(got_method, 5, "OPERATION_NOT_FOUND"), _said(got_method, got)],
        *(
            [_PAUSE, *[_said(got_method, _OPERATION.GetOperationResponse(operation=asked, outcome=one))] * 4]
            for one in odd
        ),
        *([_replies(relay, {"call_id": 4, "outcome": 1, "response": one})] for one in large),
        [_said(listed, _OPERATION.ListOperationsResponse(operations=[asked], next_page_token="t"))] * 2,
        [_said(attach, _OPERATION.AttachResponse(events=[event])) for event in told] + [_ends(attach, 0)],
        [
            _said(
                f"controller{_SESSIONS}ListEngines",
                _CLUSTER.ListEnginesResponse(
                    engines=[event["engine"] for event in events], next_page_token="t"
                ),
            ),
            _said(f"controller{_SESSIONS}GetClusterInfo", _CLUSTER.GetClusterInfoResponse(cluster_id=CLUSTER)),
        ],
    ]
    welcome = _CLUSTER.SessionResponse(welcome={"cluster_id": CLUSTER, "controller_epoch": 3})
    engines = bytes((_NUMBERS[watch], 0)) + snapshot()
    opened = [_said(relay, welcome), engines, _replies(relay, *good[:1]), _said(host, welcome)]
    return [
        *(bytes((_WELL_KNOWN,)) + mutator.pack(script) for script in scripts),
        bytes((_NEW,)) + mutator.pack([*opened, _replies(host, *good)]),
    ]


class _Thread:
    """In the place of the thread of all clients: the loop that runs."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def is_current(self) -> bool:
        return True

    def at_exit(self, _: object) -> None:
        """Nothing is left at the end of the process."""

    not_at_exit = at_exit


class LinkTarget:
    """Connects, calls and closes while each input is what is heard."""

    name = "link"
    seeds = _seeds()

    def __init__(self, watch: Watch) -> None:
        """Make the loop, and put all that waits for time aside."""
        self._watch = watch
        self._loop = Loop(watch)
        self._replies = ReplyTarget(watch)
        self._defects: list[str] = []
        self._script = Script(is_well_known=True)
        self._records: deque[bytes] = deque()
        self._undo: list[Callable[[], None]] = []
        translated = _connection.translated

        def noting(error: BaseException) -> DeliveryError:
            failure = translated(error)
            if failure.reason == "INTERNAL" and not isinstance(error, DeliveryError | grpc.aio.AioRpcError):
                self._defects.append(repr(error))
            return failure

        for module in (_connection, _direct, _link, _operation_calls, _uploading):
            self._replace(module, "translated", noting)
        for module in (_connection, _direct):
            self._replace(module, "open_channel", self._open_channel)
        self._replace(_loop, "get", _Thread)
        for module, name in (
            (_link, "_FIRST_DELAY"),
            (_link, "_LINGER"),
            (_direct, "_FIRST_DELAY"),
            (_operation_calls, "_FIRST_DELAY"),
        ):
            self._replace(module, name, 0.0)
        self._replace(_link, "_FLUSH", 0.002)
        self._replace(_calls, "UPLOAD_ABOVE", 100)

    def _open_channel(self, info: ConnectionInfo) -> HostileChannel:
        if not _address.is_host_port(info.address):
            raise BrokenRule(f"a client goes to {info.address!r}")
        return HostileChannel(self._script, info.address)

    def _replace(self, module: Any, name: str, value: object) -> None:
        before = getattr(module, name)
        self._undo.append(lambda: setattr(module, name, before))
        setattr(module, name, value)

    def vary(self, random: Random, data: bytes, other: bytes) -> bytes:
        """Spoil what is said, field by field, or say it in another order or on another call."""
        flags = data[0] if data else 0
        if random.randrange(12) == 0:
            flags ^= 1
        records = mutator.unpack(data[1:])
        lent = mutator.unpack(other[1:])
        for _ in range(1 << random.randrange(3)):
            at = random.randrange(len(records) + 1)
            match random.randrange(9):
                case 0:
                    del records[at : at + 1]
                case 1:
                    records[at:at] = records[at : at + 1]
                case 2 | 3 if lent:
                    records.insert(at, random.choice(lent))
                case 4 if at < len(records):
                    records[at] = mutator.spoil(random, records[at], other)
                case 5:
                    ends = bytes((random.randrange(len(_HEARD)), 1, random.randrange(18)))
                    details = (
                        b"" if random.randrange(2) else to_bytes(DeliveryError(random.choice(list(TABLE))))
                    )
                    records.insert(at, ends + details)
                case _ if at < len(records):
                    records[at] = _spoilt(random, records[at])
        return bytes((flags,)) + mutator.pack(records)

    def run(self, data: bytes) -> str:
        """Hear this."""
        self._script = Script(is_well_known=not (data[:1] or b"\0")[0] & _NEW)
        self._records = deque(mutator.unpack(data[1:]))
        with self._watch.in_time():
            outcome = self._loop.run(self._live())
        self._watch.check()
        if self._defects:
            defects, self._defects = self._defects, []
            raise BrokenRule(f"an error that is none of ours: {defects}")
        return outcome

    def _hear(self) -> None:
        """Let the script say what comes before the next pause."""
        while self._records and (record := self._records.popleft()) != _PAUSE:
            which, how, rest = (*record[:2], 0, 0)[0], (*record[:2], 0, 0)[1], record[2:]
            said = Ending(rest[0] if rest else 0, rest[1:]) if how % 2 else rest
            self._script.add(_HEARD[which % len(_HEARD)][0], said)

    async def _live(self) -> str:
        self._hear()
        info = ConnectionInfo("client", CLUSTER, CONTROLLER, "controller.c.enginery", "", SECRET)
        link = _link.Link(lambda: info, _PATIENCE, _PATIENCE)
        try:
            await link.start()
        except DeliveryError as error:
            await turns(_is_alone, _TURNS)
            return f"not connected: {_checked(error)}"
        asked = [asyncio.create_task(_reason_of(question)) for question in _questions(link)]
        operations = _first_calls(link)
        await turns(lambda: all(one.done() for one in operations), _TURNS)
        operations += _second_calls(link)
        await turns(_never, 3)
        self._hear()
        await turns(lambda: all(one.done() for one in operations) and all(one.done() for one in asked), _TURNS)
        repr(link.roster.engines)
        await link.close()
        await turns(lambda: all(one.done() for one in asked), _TURNS)
        for one in asked:
            one.cancel()  # as whoever asks gives up
        said = await asyncio.gather(*asked, return_exceptions=True)
        if not await turns(_is_alone, _TURNS):
            raise BrokenRule(f"tasks are left: {asyncio.all_tasks()}")
        return " ".join([*map(_end_of, operations), *map(str, said)])

    def close(self) -> None:
        """Put back what was replaced."""
        self._loop.close()
        for undo in reversed(self._undo):
            undo()


def _is_alone() -> bool:
    return len(asyncio.all_tasks()) <= 2  # this one, and that of Loop's bound


def _never() -> bool:
    return False


def _first_calls(link: _link.Link) -> list[Operation[Any]]:
    return [
        *link.submit(_calls.execute("1+1"), [0], "wrap"),
        *link.submit(_calls.keys(), [0, 1], "wrap"),
        *link.submit(_calls.pull("x"), [1], "wrap"),
        *link.submit(_calls.push({"x": "x" * 300}), [1], "wrap"),
    ]


def _second_calls(link: _link.Link) -> list[Operation[Any]]:
    task = _calls.apply(_function, (1,), {})
    task.task = frame_pb2.TaskOptions(retries=1).SerializeToString()
    operations: list[Operation[Any]] = [
        *link.submit(_calls.apply(_function, (2,), {}), [0], "wrap"),
        *link.submit(_calls.set_properties({"a": 1}), [0], "wrap"),
        *link.submit(_calls.push({"x": "x" * 300}), [0, 1], "wrap"),
        *link.submit(_calls.queue_status(), [0], "wrap"),
        *link.submit(task, [ANY_ENGINE], "wrap"),
        *link.submit(_calls.cancel(_OPERATION_ID, None, None), [1], "wrap"),
        *link.submit(_calls.pull("x"), [0], "wrap"),
    ]
    recalled: Operation[Any] = Operation(_calls.execute("2"), 0, bytes(16), "wrap")
    link.recall(recalled)
    return [*operations, recalled]


def _function(number: int) -> int:
    return number


def _questions(link: _link.Link) -> list[Coroutine[Any, Any, object]]:
    return [
        _info(link),
        link.operations.events(_OPERATION_ID, None),
        link.operations.list(operation_pb2.ListOperationsRequest(), None),
        link.operations.release(_OPERATION_ID),
        link.lost_engines(),
        link.cluster_info(),
        _follow(link),
    ]


async def _info(link: _link.Link) -> None:
    response = await link.operations.get(_OPERATION_ID, 0)
    repr(operations_module.from_message(response.operation))


async def _follow(link: _link.Link) -> None:
    feed = Feed()
    following = asyncio.ensure_future(link.operations.follow(feed, _OPERATION_ID, 0, 0, lambda: False))
    try:
        while not feed.ended or feed.batches:
            await feed.filled()
            if feed.batches:
                for event in feed.batches.popleft().events:
                    repr(operations_module.event_from_message(event))
                feed.taken()
        if feed.error is not None:
            raise feed.error
    finally:
        feed.close()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _reason_of(question: Coroutine[Any, Any, object]) -> str:
    """Return what came of a question; BrokenRule if that was no error of the table."""
    try:
        answer = await question
    except (DeliveryError, EngineryError) as error:
        return _checked(error)
    return type(answer).__name__


def _checked(error: DeliveryError | EngineryError) -> str:
    shown = public(error) if isinstance(error, DeliveryError) else error
    if not isinstance(shown, EngineryError):
        raise BrokenRule(f"no error of ours: {error!r}")
    check_secret(str(shown))
    return error.reason if isinstance(error, DeliveryError) else type(error).__name__


def _end_of(operation: Operation[Any]) -> str:
    """Return how a call ended; BrokenRule if it did not, or not in a way that can be shown."""
    if not operation.done():
        raise BrokenRule(f"a call that never ends: {operation!r}")
    if operation._failure is not None:
        return _checked(operation._failure)
    assert operation._answer is not None
    try:
        if operation.request.method != METHODS["Cancel"]:
            show(operation.request.method, operation._answer.message)
    except (DeliveryError, EngineryError) as error:
        return _checked(error)
    return str(operation._answer.outcome)


def _spoilt(random: Random, record: bytes) -> bytes:
    which, how, rest = (*record[:2], 0, 0)[0], (*record[:2], 0, 0)[1], record[2:]
    if random.randrange(12) == 0:
        which = random.randrange(256)
    if how % 2:
        return bytes((which, how)) + mutator.spoil(random, rest, record)
    return bytes((which, how)) + mutator.spoilt_message(random, _HEARD[which % len(_HEARD)][1], rest)
