"""Answers of operations that were begun elsewhere: how each method's answer is read, without its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginery import _calls, _codec, operations
from enginery._methods import NAMES, OPERATIONS, PYTHON_NAMES
from enginery._outcomes import STATES
from enginery._reasons import TABLE, DeliveryError
from enginery.serialized import Serialized
from enginery.v1 import engine_pb2, frame_pb2, operation_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginery._answer import Answer
    from enginery._calls import Request

_OUTCOMES = {
    operation_pb2.OPERATION_STATE_SUCCEEDED: frame_pb2.OUTCOME_OK,
    operation_pb2.OPERATION_STATE_FAILED: frame_pb2.OUTCOME_USER_ERROR,
} | {
    state: outcome
    for outcome, state in STATES.items()
    if outcome in (frame_pb2.OUTCOME_CANCELLED, frame_pb2.OUTCOME_TIMED_OUT)
}
"""Outcomes of operations that have a response."""


def _functions(answer: Answer) -> object:
    import __main__

    return _codec.decode_functions(answer.namespace(), vars(__main__))


_DECODERS: dict[str, Callable[[Answer], Any]] = {
    "execute": lambda answer: _calls.execute_result(answer, answer.message.result),
    "apply": _calls.apply_value,
    "pull": lambda answer: _codec.decode(answer.namespace()),
    "pull_function": _functions,
    "pull_serialized": lambda answer: {
        name: Serialized(answer.value(value)) for name, value in answer.message.values.items()
    },
    "keys": lambda answer: list(answer.message.keys),
}
_NUMBERS = {PYTHON_NAMES[number]: number for number in OPERATIONS}


def request_of(method: str) -> Request[Any]:
    """Return what reads the answer of `method`, as Python spells it; UNKNOWN_METHOD if there is none such here.

    What was asked for by name comes as a dictionary: the names are those of whoever asked.
    """
    if method not in _NUMBERS:
        raise DeliveryError("UNKNOWN_METHOD", method=method)
    number = _NUMBERS[method]
    response = getattr(engine_pb2, f"{NAMES[number]}Response")
    return _calls.Request(number, b"", response, _DECODERS.get(method, _calls.nothing))


def answer_of(outcome: operation_pb2.OperationOutcome) -> tuple[int, Any]:
    """Return outcome and response of an operation that has ended; DeliveryError if it ended without one."""
    if outcome.HasField("error"):
        failure = outcome.error
        if failure.reason not in TABLE:
            raise DeliveryError("INTERNAL", cause=f"{failure.reason}: {failure.message}", process="peer")
        raise DeliveryError(failure.reason, **dict(failure.metadata))
    response = operations.response_of(outcome)
    if response is None or outcome.state not in _OUTCOMES:
        raise DeliveryError("MALFORMED_MESSAGE", message="OperationOutcome")
    return _OUTCOMES[outcome.state], response
