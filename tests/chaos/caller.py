"""A client that lives in chaos, as one in any language would be: gRPC's plain stubs, unary calls, and retries.

    python -m tests.chaos.caller FOLDER NAME LIFE SEED

It mints an operation id, notes it, and calls again under the same id until it hears how the operation ended: by
Execute, by Submit and Attach, or by Submit and GetOperation. A later life calls again for what is open still.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from google.rpc import error_details_pb2, status_pb2

from enginery.v1 import cluster_pb2, cluster_pb2_grpc, engine_pb2, engine_pb2_grpc, operation_pb2, value_pb2
from tests.chaos import jobs, ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 3
ATTEMPT = 8.0  # seconds of one rpc; then the same again
PATIENCE = 60.0  # seconds of calling again, after which something must be wrong
PAUSE = 0.2  # seconds before calling again
Metadata = tuple[tuple[str, str | bytes], ...]

_RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,  # gRPC's own word for streams that broke
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_OPTIONS = [
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
]
_ALIVE = (operation_pb2.OPERATION_STATE_QUEUED, operation_pb2.OPERATION_STATE_RUNNING)


@dataclass(frozen=True, slots=True)
class End:
    """How an operation ended: `reason` of an error, or its result."""

    reason: str = ""
    text: str = ""
    result: engine_pb2.ExecuteResult | None = None


class Caller:
    """One thread of one life of one client."""

    def __init__(self, folder: Path, name: str, notes: ledger.Notes, dice: random.Random) -> None:
        """Open a channel with what the connection file says."""
        self._folder = folder
        self._name = name
        self._notes = notes
        self._dice = dice
        self._complain_at = 0.0
        info = json.loads((folder / "state" / "client.json").read_text())
        credentials = grpc.ssl_channel_credentials(root_certificates=info["ca_pem"].encode())
        options = [*_OPTIONS, ("grpc.ssl_target_name_override", info["server_name"])]
        channel = grpc.secure_channel(info["address"], credentials, options=options)
        self._engine = engine_pb2_grpc.EngineServiceStub(channel)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        self._token: tuple[str, str | bytes] = ("authorization", f"Bearer {info['token']}")

    def run(self, orphans: list[ledger.Sent]) -> None:
        """Finish what earlier lives left open, then work until told to finish."""
        for sent in orphans:
            job = jobs.Job(sent.name, sent.kind)
            self._call(job, sent.operation_id, sent.engine_id)
        for number in itertools.count(1):
            if (self._folder / "finish").exists():
                return
            engine = self._an_engine()
            if engine is None:
                time.sleep(PAUSE)
                continue
            job = jobs.draw(self._dice, f"{self._name}.{number}", stopped=False)
            operation_id = str(uuid.uuid4())
            machine = engine.properties["machine"].json.string_value or ledger.UNKNOWN
            self._notes.sent(job.name, operation_id, engine.engine_id, machine, job.kind)
            self._call(job, operation_id, engine.engine_id)

    def _an_engine(self) -> cluster_pb2.Engine | None:
        try:
            listed = self._cluster.ListEngines(
                cluster_pb2.ListEnginesRequest(), metadata=(self._token,), timeout=ATTEMPT
            )
        except grpc.RpcError:
            return None
        return self._dice.choice(listed.engines) if listed.engines else None

    def _call(self, job: jobs.Job, operation_id: str, engine_id: int) -> None:
        """Have it done, and note how it ended."""
        code = job.code(self._folder / "ledger", engine_id)
        request = engine_pb2.ExecuteRequest(code=code, accept=[value_pb2.CODEC_JSON])
        metadata: Metadata = (
            self._token,
            ("enginery-engine-id", str(engine_id)),
            ("enginery-operation-id", operation_id),
        )
        way = self._dice.choice([self._execute, self._attach, self._wait])
        self._complain_at = time.monotonic() + PATIENCE
        while True:
            try:
                end = way(request, metadata, operation_id)
                break
            except grpc.RpcError as error:
                failed = _end_of(error)
                if failed is not None:
                    end = failed
                    break
                self._pause(job, error)
        self._hear(job, end)

    def _pause(self, what: object, error: grpc.RpcError) -> None:
        """Wait before calling again, and say so if that takes very long."""
        if time.monotonic() > self._complain_at:
            self._notes.trouble(f"{what} is called in vain: {error.code().name} {error.details()}")
            self._complain_at = float("inf")
        time.sleep(PAUSE)

    def _execute(self, request: engine_pb2.ExecuteRequest, metadata: Metadata, _: str) -> End:
        answer = self._engine.Execute(request, metadata=metadata, timeout=ATTEMPT)
        return End(result=answer.result)

    def _wait(self, request: engine_pb2.ExecuteRequest, metadata: Metadata, operation_id: str) -> End:
        self._submit(request, metadata)
        asked = operation_pb2.GetOperationRequest(operation_id=operation_id)
        asked.wait.FromSeconds(int(ATTEMPT) - 2)
        while True:
            answer = self._engine.GetOperation(asked, metadata=(self._token,), timeout=ATTEMPT)
            if answer.operation.state not in _ALIVE:
                return _end(answer.outcome)

    def _attach(self, request: engine_pb2.ExecuteRequest, metadata: Metadata, operation_id: str) -> End:
        """Follow the events. Their output is what counts, but for a host that has gone with the rest of it."""
        self._submit(request, metadata)
        last, output = 0, []
        while True:
            asked = operation_pb2.AttachRequest(operation_id=operation_id, after_sequence=last)
            try:
                for event in self._events(asked):
                    if event.sequence != last + 1:
                        self._notes.trouble(
                            f"{self._name}: event {event.sequence} after {last}: {operation_id}"
                        )
                    last = event.sequence
                    if event.WhichOneof("kind") == "stdout":
                        output.append(event.stdout)
                    elif event.WhichOneof("kind") == "outcome":
                        end = _end(event.outcome)
                        heard = "".join(output)
                        if end.result is not None and not end.result.stdout.startswith(heard):
                            end.result.stdout = heard
                        return end
            except grpc.RpcError as error:
                failed = _end_of(error)
                if failed is not None:
                    return failed
                self._pause(operation_id, error)

    def _events(self, asked: operation_pb2.AttachRequest) -> Iterator[operation_pb2.OperationEvent]:
        for batch in self._engine.Attach(asked, metadata=(self._token,), timeout=ATTEMPT):
            yield from batch.events

    def _submit(self, request: engine_pb2.ExecuteRequest, metadata: Metadata) -> None:
        submitted = engine_pb2.SubmitRequest(execute=request)
        self._engine.Submit(submitted, metadata=metadata, timeout=ATTEMPT)

    def _hear(self, job: jobs.Job, end: End) -> None:
        if end.result is None:
            self._notes.heard(job.name, end.reason, text=end.text)
        elif end.result.HasField("error"):
            self._notes.heard(job.name, "raised", end.result.error.errors[0].message)
        else:
            value = end.result.value.json.string_value
            nonce = job.nonce(value, end.result.stdout)
            text = "" if nonce else f"{value[:40]!r} {end.result.stdout[:100]!r} {len(end.result.stdout)}"
            self._notes.heard(job.name, "ok", nonce, text)


def _end(outcome: operation_pb2.OperationOutcome) -> End:
    if outcome.HasField("error"):
        return End(reason=outcome.error.reason, text=outcome.error.message)
    response = engine_pb2.ExecuteResponse()
    outcome.response.Unpack(response)
    return End(result=response.result)


def _end_of(error: grpc.RpcError) -> End | None:
    """Return how an rpc that failed says that the operation ended; None if it is to be made again."""
    status = status_pb2.Status()
    trailers: tuple[tuple[str, bytes], ...] = tuple(error.trailing_metadata() or ())  # type: ignore[arg-type]
    status.ParseFromString(dict(trailers).get("grpc-status-details-bin", b""))
    reason = error.code().name
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
    stopped_just_then = reason == grpc.StatusCode.CANCELLED.name  # without a reason of ours
    again = error.code() in _RETRIED or stopped_just_then
    return None if again else End(reason=reason, text=error.details() or "")


def main(folder: Path, name: str, life: int, seed: int) -> None:
    """Run all threads of one life; one that breaks leaves a note."""
    path = folder / f"notes-{name}"
    earlier, _ = ledger.read_notes(path)
    orphans = [sent for sent in earlier.values() if sent.is_open]
    notes = ledger.Notes(path)

    def work(number: int) -> None:
        dice = random.Random(f"{seed} {name} {life} {number}")
        try:
            Caller(folder, f"{name}-{number}.{life}", notes, dice).run(orphans[number::THREADS])
        except Exception as error:
            notes.trouble(f"{name}-{number}: {type(error).__name__}: {error}")
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
