"""Names of methods and metadata keys, all derived from the contract."""

from __future__ import annotations

from enginery.v1 import engine_pb2, frame_pb2

ENGINE_ID_KEY = "enginery-engine-id"
ENGINE_IDS_KEY = "enginery-engine-ids"
EPOCH_KEY = "enginery-epoch"
OPERATION_ID_KEY = "enginery-operation-id"
SESSION_ID_KEY = "enginery-session-id"
KEEP_QUEUE_KEY = "enginery-keep-queue"
INLINE_LIMIT_KEY = "enginery-inline-limit"
TASK_KEY = "enginery-task"
TIMEOUT_KEY = "enginery-timeout"
GRACE_KEY = "enginery-grace"
INTERRUPT_ONLY_KEY = "enginery-interrupt-only"
ANY_INCARNATION_KEY = "enginery-any-incarnation"
CANCEL_ON_DISCONNECT_KEY = "enginery-cancel-on-disconnect"

ANY_ENGINE = -1
"""The engine id of a task: the controller chooses. In metadata it is `any`."""

ENGINE_SERVICE = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]


def _number(rpc: str) -> int:
    snake = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in rpc)
    return frame_pb2.Method.Value(f"METHOD{snake}")


METHODS: dict[str, int] = {rpc.name: _number(rpc.name) for rpc in ENGINE_SERVICE.methods}
"""Number of each rpc of EngineService, by its name such as `PushFunction`."""
NAMES: dict[int, str] = {number: name for name, number in METHODS.items()}
"""The other way round."""
STREAMING: frozenset[int] = frozenset(
    METHODS[rpc.name] for rpc in ENGINE_SERVICE.methods if rpc.client_streaming or rpc.server_streaming
)
"""Methods that go by transfer instead of a call frame."""
PYTHON_NAMES: dict[int, str] = {
    number: "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
    for number, name in NAMES.items()
}
"""Name of each method as Python and people spell it, such as `push_function`."""
OPERATIONS: dict[int, str] = {
    METHODS["".join(part.title() for part in field.name.split("_"))]: field.name
    for field in engine_pb2.SubmitRequest.DESCRIPTOR.fields
}
"""Methods whose calls are operations, and the field of SubmitRequest that each has."""
