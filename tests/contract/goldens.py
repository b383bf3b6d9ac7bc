"""Messages whose bytes are committed: what an earlier version sent must keep its meaning.

`python -m tests.contract.goldens` writes the file of each message that has none yet. It never rewrites one: if
a test of them fails, the contract was broken.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2

from enginery.v1 import cluster_pb2, engine_pb2, error_pb2, frame_pb2, value_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

FOLDER = Path(__file__).parent / "goldens"

_OPERATION = "0192f0c1-1234-8abc-8000-000000000007"
_TIME = timestamp_pb2.Timestamp(seconds=1_700_000_000, nanos=5)
_PICKLE = value_pb2.Pickle(python_version="3.11.7", buffers=[b"one", b"two"], data=b"\x80\x05K\x01.")
_JSON = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value(number_value=1.5)]))
_STRUCT = struct_pb2.Struct(fields={"a": _JSON, "n": struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)})
_BLOB = value_pb2.Blob(
    blob_id="b-1", codec=value_pb2.CODEC_PICKLE, size=7, part_sizes=[3, 4], python_version="3.11.7"
)
_ERROR = error_pb2.RemoteError(
    errors=[
        error_pb2.RaisedError(
            module="builtins",
            type_name="ZeroDivisionError",
            hierarchy=["builtins.ZeroDivisionError", "builtins.ArithmeticError"],
            message="division by zero",
            representation="ZeroDivisionError('division by zero')",
            notes=["a note"],
            frames=[
                error_pb2.StackFrame(
                    file="<execute 3>",
                    line=1,
                    end_line=1,
                    column=0,
                    end_column=3,
                    function="<module>",
                    source_line="1/0",
                )
            ],
            frames_omitted=2,
            context_index=1,
            suppress_context=True,
        ),
        error_pb2.RaisedError(module="builtins", type_name="ExceptionGroup", message="m", member_indexes=[0]),
    ],
    traceback="Traceback ...",
    engine_id=3,
    method="execute",
    arguments="'1/0'",
    operation_id=_OPERATION,
    category=error_pb2.ERROR_CATEGORY_USER,
    pickled=_PICKLE,
)
_RESULT = engine_pb2.ExecuteResult(
    engine_id=0,
    operation_id=_OPERATION,
    number=3,
    input=engine_pb2.ExecuteInput(raw="1+1", translated="1+1"),
    stdout="out",
    stderr="err",
    text="2",
    pretty="2",
    value=value_pb2.Value(json=struct_pb2.Value(number_value=2)),
    displays=[
        value_pb2.Display(
            data=[
                value_pb2.MimeData(mime_type="text/plain", text="2"),
                value_pb2.MimeData(mime_type="image/png", data=b"png"),
            ],
            metadata=_STRUCT,
        )
    ],
    start_time=_TIME,
    duration=duration_pb2.Duration(seconds=1),
    stdout_blob=_BLOB,
    dropped_bytes=9,
    error=_ERROR,
)
_CALL = frame_pb2.Call(
    call_id=1,
    engine_id=2,
    method=frame_pb2.METHOD_EXECUTE,
    operation_id=b"0123456789abcdef",
    session_id=b"01234567",
    options=frame_pb2.CallOptions(keep_queue=True, inline_limit=1024),
    request=b"request",
)
_REPLIES = [
    frame_pb2.Reply(call_id=1, outcome=frame_pb2.OUTCOME_OK, response=b"response"),
    frame_pb2.Reply(call_id=2, outcome=frame_pb2.OUTCOME_NOT_DELIVERED, error=b"error"),
]
_ENGINE = cluster_pb2.Engine(
    engine_id=0,
    incarnation=_OPERATION,
    epoch=1_700_000_000_000,
    state=cluster_pb2.ENGINE_STATE_BUSY,
    hostname="host",
    ip="127.0.0.1",
    port=4242,
    pid=77,
    register_time=_TIME,
    python_version="3.11.7",
    properties={"gpu": value_pb2.Value(json=_JSON)},
    direct_addresses=["127.0.0.1:4243"],
    queued_count=2,
    resident_bytes=20_000_000,
    operation_id=_OPERATION,
    operation_start_time=_TIME,
    operation_method="execute",
    last_failure="SIGSEGV (signal 11)",
)

MESSAGES: dict[str, Message] = {
    "execute_request": engine_pb2.ExecuteRequest(
        code="1+1", accept=[value_pb2.CODEC_JSON, value_pb2.CODEC_PICKLE]
    ),
    "execute_response": engine_pb2.ExecuteResponse(result=_RESULT),
    "apply_request": engine_pb2.ApplyRequest(
        pickled_function=_PICKLE, blob_arguments=_BLOB, accept=[value_pb2.CODEC_PICKLE]
    ),
    "apply_request_json": engine_pb2.ApplyRequest(
        function_name="math.sqrt",
        json_arguments=engine_pb2.JsonArguments(args=[struct_pb2.Value(number_value=4)], kwargs=_STRUCT),
    ),
    "apply_response": engine_pb2.ApplyResponse(
        value=value_pb2.Value(pickle=_PICKLE), operation_id=_OPERATION, stdout="out", start_time=_TIME
    ),
    "push_request": engine_pb2.PushRequest(json=_STRUCT),
    "pull_response": engine_pb2.PullResponse(pickled=_PICKLE, operation_id=_OPERATION),
    "push_serialized_request": engine_pb2.PushSerializedRequest(
        values={
            "a": value_pb2.Value(
                ndarray=value_pb2.NdArray(dtype="<f8", shape=[2, 1], fortran_order=True, data=b"0" * 16)
            )
        }
    ),
    "queue_status_response": engine_pb2.QueueStatusResponse(
        pending=engine_pb2.QueuedCall(
            operation_id=_OPERATION,
            method="execute",
            arguments="'1+1'",
            submit_time=_TIME,
            start_time=_TIME,
            progress_fraction=0.0,
            progress_text="begun",
        )
    ),
    "upload_request_blob": engine_pb2.UploadRequest(blob=_BLOB),
    "upload_request_chunk": engine_pb2.UploadRequest(chunk=value_pb2.Chunk(offset=3, crc32=0, data=b"data")),
    "engine_message": engine_pb2.EngineMessage(
        hellos=[
            engine_pb2.Hello(
                slot=1,
                host_id=_OPERATION,
                incarnation=_OPERATION,
                engine_id=0,
                epoch=7,
                pid=77,
                hostname="host",
                python_version="3.11.7",
                enginery_version="0.1.0",
                properties={"gpu": value_pb2.Value(text="none")},
                certificate_request="PEM",
                direct_addresses=["127.0.0.1:4243"],
                capabilities=["direct"],
            )
        ],
        heartbeat=engine_pb2.Heartbeat(
            sequence=1, engines=[engine_pb2.EngineStatus(engine_id=0, queued_count=1, resident_bytes=2)]
        ),
        kernels_changed=[
            engine_pb2.KernelChanged(engine_id=0, incarnation=_OPERATION, pid=78, reason="SIGKILL")
        ],
        properties_changed=[
            engine_pb2.PropertiesChanged(engine_id=0, properties={"a": value_pb2.Value(json=_JSON)})
        ],
        replies=_REPLIES,
        goodbyes=[engine_pb2.Goodbye(engine_id=0, reason="stopped")],
    ),
    "controller_message": engine_pb2.ControllerMessage(
        welcomes=[
            engine_pb2.Welcome(
                slot=1,
                engine_id=0,
                epoch=7,
                cluster_id=_OPERATION,
                controller_epoch=8,
                lease=duration_pb2.Duration(seconds=60),
                certificate="PEM",
                client_token_digest=b"d" * 32,
                capabilities=["direct"],
            )
        ],
        refusals=[engine_pb2.Refusal(slot=2, error=b"status")],
        calls=[_CALL],
        transfers=[engine_pb2.TransferOffer(transfer_id="0" * 32, engine_id=0, method=frame_pb2.METHOD_UPLOAD)],
        heartbeat_ack=engine_pb2.HeartbeatAck(sequence=1),
        dismissals=[engine_pb2.Dismissal(engine_id=0, reason="shutdown")],
    ),
    "transfer_request": engine_pb2.TransferRequest(accept=engine_pb2.TransferAccept(transfer_id="0" * 32)),
    "transfer_response": engine_pb2.TransferResponse(message=b"message"),
    "session_request": cluster_pb2.SessionRequest(
        hello=cluster_pb2.SessionHello(session_id=b"01234567", client_version="0.1.0", capabilities=["x"]),
        calls=[_CALL],
    ),
    "session_response": cluster_pb2.SessionResponse(
        welcome=cluster_pb2.SessionWelcome(cluster_id=_OPERATION, controller_epoch=8), replies=_REPLIES
    ),
    "list_engines_response": cluster_pb2.ListEnginesResponse(engines=[_ENGINE], next_page_token="1"),
    "watch_engines_response": cluster_pb2.WatchEnginesResponse(
        events=[
            cluster_pb2.EngineEvent(kind=cluster_pb2.ENGINE_EVENT_KIND_AWAY, engine=_ENGINE, reason="reset")
        ],
        snapshot=True,
    ),
    "reply": frame_pb2.Reply(
        call_id=1, outcome=frame_pb2.OUTCOME_OK, engine_id=2, attempts=3, run_us=1_500, response=b"response"
    ),
    "get_cluster_info_response": cluster_pb2.GetClusterInfoResponse(
        cluster_id=_OPERATION,
        controller_epoch=8,
        enginery_version="0.1.0",
        python_version="3.11.7",
        start_time=_TIME,
        engine_count=1,
        lease=duration_pb2.Duration(seconds=60),
        value_limit=4 << 30,
        pid=76,
        capabilities=["x"],
    ),
}


def load(name: str) -> tuple[type[Message], bytes]:
    """Return the type of a golden and its committed bytes."""
    return type(MESSAGES[name]), bytes.fromhex((FOLDER / f"{name}.hex").read_text())


def main() -> None:
    """Write what is missing."""
    FOLDER.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        path = FOLDER / f"{name}.hex"
        if not path.exists():
            text = message.SerializeToString(deterministic=True).hex()
            path.write_text("\n".join(text[at : at + 96] for at in range(0, len(text), 96)) + "\n")


if __name__ == "__main__":
    main()
