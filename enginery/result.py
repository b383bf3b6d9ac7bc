"""What calls return that is more than a plain value: results of execute, queue status."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from enginery import _codec, _decode, _times, _values
from enginery._decode import Errors, to_exception
from enginery._display_hint import without
from enginery._output import as_text
from enginery.errors import BlobNotFound, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from enginery._encoded import Encoded
    from enginery.v1 import engine_pb2, value_pb2


class _ByName:
    """Item access to attributes, as the dictionaries of IPython.kernel had it: `result["stdout"]`."""

    __slots__ = ()

    def __getitem__(self, name: object) -> Any:
        """Return the attribute of that name; KeyError if there is none."""
        if not isinstance(name, str) or name.startswith("_") or not hasattr(type(self), name):
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class ExecuteInput(_ByName):
    """The source of a command: `raw` as it was sent, `translated` as it ran."""

    raw: str
    translated: str


@dataclass(frozen=True, slots=True)
class Display:
    """One displayed object: its forms by MIME type, text or bytes, and the hints that Jupyter defines."""

    data: Mapping[str, str | bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Return the forms as Jupyter has them: bytes as base64, JSON as what it says."""
        return {mime: _as_jupyter(mime, content) for mime, content in self.data.items()}, without(self.metadata)

    def __repr__(self) -> str:
        """Show the text form, or the types if there is none."""
        text = self.data.get("text/plain")
        return text if isinstance(text, str) else f"<Display {', '.join(self.data)}>"


def _as_jupyter(mime: str, content: str | bytes) -> Any:
    if isinstance(content, bytes):
        return base64.b64encode(content).decode("ascii")
    return json.loads(content) if mime == "application/json" or mime.endswith("+json") else content


class ExecuteResult(_ByName):
    """The record of one executed command. Each attribute is an item as well: `result["stdout"]`.

    What is large stays on the engine's host for 10 minutes and is fetched on first use: `value` above 1 MiB and
    output above 1 MiB. Until then nothing of `value` is unpickled.
    """

    def __init__(
        self,
        message: engine_pb2.ExecuteResult,
        displays: Sequence[Display],
        fetch: Callable[[value_pb2.Blob], Encoded],
        errors: Errors,
    ) -> None:
        """Take the contract's message; `fetch` downloads a blob."""
        self._message = message
        self._fetch = fetch
        self._displays = list(displays)
        self._error = to_exception(message.error, errors) if message.HasField("error") else None
        self._loaded: dict[str, Any] = {}

    @property
    def engine_id(self) -> int:
        """The engine that ran it."""
        return self._message.engine_id

    @property
    def id(self) -> int:
        """The same as `engine_id`."""
        return self._message.engine_id

    @property
    def operation_id(self) -> str:
        """Its operation, a UUID."""
        return self._message.operation_id

    @property
    def number(self) -> int:
        """Its number: counts up from 1 on each engine, failed commands included."""
        return self._message.number

    @property
    def input(self) -> ExecuteInput:
        """The source: `raw` and `translated`."""
        return ExecuteInput(self._message.input.raw, self._message.input.translated)

    @property
    def stdout(self) -> str:
        """What it wrote to standard output; bytes that are not UTF-8 show as `\\xNN`.

        Of more than the engine's output limit the middle is missing, and marked (`dropped_bytes`). Of more than
        1 MiB so is it once the engine has let go of it, after 10 minutes.
        """
        return self._output("stdout")

    @property
    def stderr(self) -> str:
        """What it wrote to standard error, as `stdout`."""
        return self._output("stderr")

    def _output(self, stream: str) -> str:
        if stream not in self._loaded:
            short: str = getattr(self._message, stream)
            blob: value_pb2.Blob = getattr(self._message, f"{stream}_blob")
            self._loaded[stream] = self._long_output(short, blob) if blob.blob_id else short
        output: str = self._loaded[stream]
        return output

    def _long_output(self, short: str, blob: value_pb2.Blob) -> str:
        try:
            return as_text(b"".join(self._fetch(blob).parts))
        except BlobNotFound:
            return short  # its middle is marked as missing

    @property
    def dropped_bytes(self) -> int:
        """Bytes of output that were dropped at the engine's output limit."""
        return self._message.dropped_bytes

    @property
    def text(self) -> str | None:
        """`repr` of the last expression; None if there was none, or it was None."""
        return self._message.text if self._message.HasField("text") else None

    @property
    def pretty(self) -> str | None:
        """The last expression as pprint shows it; None with `text`."""
        return self._message.pretty if self._message.HasField("pretty") else None

    @property
    def value(self) -> Any:
        """The last expression's value, decoded on first use; None if there was none.

        SerializationError if it could not be encoded or decoded; `text` is there all the same. BlobNotFound if
        it is large and the engine has let go of it.
        """
        if "value" not in self._loaded:
            self._loaded["value"] = self._value()
        return self._loaded["value"]

    @property
    def is_partial(self) -> bool:
        """Whether something large stayed on the engine's host, and is not fetched yet."""
        message = self._message
        remote = {"value": message.value.blob, "stdout": message.stdout_blob, "stderr": message.stderr_blob}
        return any(blob.blob_id and name not in self._loaded for name, blob in remote.items())

    def fetch(self) -> None:
        """Fetch now what is large and stayed on the engine's host; what it has let go of is left out."""
        with contextlib.suppress(SerializationError, BlobNotFound):  # told again when it is asked for
            _ = self.value
        self._output("stdout")
        self._output("stderr")

    def _value(self) -> object:
        value = self._message.value
        kind = value.WhichOneof("kind")
        if kind is None:
            if self._message.value_error:
                raise SerializationError(
                    f"the value did not travel: {self._message.value_error}",
                    engine_id=self.engine_id,
                    operation_id=self.operation_id,
                )
            return None
        return _codec.decode(self._fetch(value.blob) if kind == "blob" else _values.from_value(value))

    @property
    def displays(self) -> list[Display]:
        """What was displayed, in order: by the code, then the last expression if it offers more than text."""
        return self._displays

    @property
    def shown(self) -> Display | None:
        """The last expression's value as it is displayed; None if it offers only text."""
        last = self._displays[-1] if self._displays and self.text is not None else None
        if last is None or len(last.data) == 1:
            return None
        return last if last.data.get("text/plain") in (self.text, self.pretty) else None

    @property
    def error(self) -> Exception | None:
        """What it raised; None if it did not. Only records of `get_result` have one: `execute` raises it."""
        return self._error

    @property
    def started_at(self) -> datetime:
        """When it began to run, UTC."""
        return _times.moment(self._message.start_time)

    @property
    def duration(self) -> float:
        """How long it ran, in seconds."""
        return _times.seconds(self._message.duration)

    def __repr__(self) -> str:
        """Show where it ran, its number, and the outcome in short."""
        if self._error is not None:
            outcome = f"raised {_decode.to_remote_error(self._message.error).type_name}"
        elif self.text is not None:
            outcome = short(self.text)
        else:
            outcome = "no value"
        printed = "" if not self._message.stdout else f", {len(self._message.stdout)} characters printed"
        return f"<ExecuteResult [{self.engine_id}:{self.number}] {outcome}{printed}, {self.duration:.3g} s>"

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Show the value in a notebook, if it offers more than text."""
        forms, hints = ({}, {}) if self.shown is None else self.shown._repr_mimebundle_()
        return {**forms, "text/plain": repr(self)}, hints

    def __str__(self) -> str:
        """Return what a terminal would have shown: output, then the value's text."""
        text = "" if self.pretty is None else f"Out[{self.engine_id}:{self.number}]: {self.pretty}"
        return (
            "".join(part if part.endswith("\n") else f"{part}\n" for part in (self.stdout, self.stderr) if part)
            + text
        )


@dataclass(frozen=True, slots=True, repr=False)
class QueuedCall(_ByName):
    """One operation in an engine's queue."""

    operation_id: str
    method: str
    arguments: str
    """Its arguments, shortened for people to read."""
    submitted_at: datetime
    started_at: datetime | None = None
    """When it began to run; None while it waits."""
    progress_fraction: float | None = None
    """The fraction done that it last reported; None if it reported none."""
    progress_text: str = ""

    def __repr__(self) -> str:
        """Show what it is, and how far if it said."""
        done = "" if self.progress_fraction is None else f", {self.progress_fraction:.0%} {self.progress_text}"
        arguments = f" {short(self.arguments)!r}" if self.arguments else ""
        return f"<QueuedCall {self.method}{arguments}{done.rstrip()}>"


@dataclass(frozen=True, slots=True)
class QueueStatus(_ByName):
    """What an engine is doing: `status["pending"]` runs, `status["queue"]` waits."""

    engine_id: int
    pending: QueuedCall | None
    """What runs; None if the engine is idle."""
    queue: list[QueuedCall]
    """What waits, first to run first."""

    @property
    def id(self) -> int:
        """The same as `engine_id`."""
        return self.engine_id


def queue_status(engine_id: int, response: engine_pb2.QueueStatusResponse) -> QueueStatus:
    """Return what the contract's message says."""
    pending = _queued(response.pending) if response.HasField("pending") else None
    return QueueStatus(engine_id, pending, [_queued(call) for call in response.queue])


def _queued(call: engine_pb2.QueuedCall) -> QueuedCall:
    return QueuedCall(
        operation_id=call.operation_id,
        method=call.method,
        arguments=call.arguments,
        submitted_at=_times.moment(call.submit_time),
        started_at=_times.moment(call.start_time) if call.HasField("start_time") else None,
        progress_fraction=call.progress_fraction if call.HasField("progress_fraction") else None,
        progress_text=call.progress_text,
    )


def display(message: value_pb2.Display, blobs: Mapping[str, Encoded]) -> Display:
    """Return what the contract's message says; a large form that the engine has let go of is left out."""
    data: dict[str, str | bytes] = {}
    for form in message.data:
        match form.WhichOneof("content"):
            case "text":
                data[form.mime_type] = form.text
            case "data":
                data[form.mime_type] = form.data
            case "blob" if form.blob.blob_id in blobs:
                data[form.mime_type] = b"".join(blobs[form.blob.blob_id].parts)
    return Display(data, _values.hints(message.metadata))


def short(text: str, room: int = 60) -> str:
    """Return the first line of `text`, or what of it has room."""
    text = text.rstrip()
    first = text.split("\n", 1)[0]
    return first if first == text and len(text) <= room else f"{first[: room - 3]}..."
