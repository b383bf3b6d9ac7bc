"""What each command does to the namespace: values in, values out."""

from __future__ import annotations

import gc
import sys
import types
from typing import TYPE_CHECKING

from engine_service.kernel.display import text_of
from engine_service.kernel.functions import Functions
from engine_service.kernel.namespace import check_name, plain
from engine_service.kernel.storage import load, store
from enginery._codec import (
    captured_globals,
    decode,
    decode_bound,
    encode,
    encode_functions,
    rebind,
    require_function,
)
from enginery._encoded import Encoded, Stored
from enginery.errors import SerializationError, ValueTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine_service.kernel.awaiting import Awaiting
    from engine_service.kernel.namespace import Namespace
    from engine_service.kernel.properties import Properties
    from engine_service.kernel.shell import Shell
    from engine_service.kernel_messages import Command, Reply, Transferred

_MAX_STORED = 200  # files of one reply


class Commands:
    """Carries out commands. Whatever goes wrong is raised; `reply` then holds what was done so far."""

    def __init__(
        self,
        namespace: Namespace,
        properties: Properties,
        shell: Shell,
        awaiting: Awaiting,
        value_limit: int,
    ) -> None:
        """Take what commands work on; `value_limit` in bytes."""
        self._namespace = namespace
        self._properties = properties
        self._shell = shell
        self._awaiting = awaiting
        self._value_limit = value_limit
        self._functions = Functions(namespace)
        self._methods: dict[str, Callable[[Command, Reply], None]] = {
            "execute": self._execute,
            "apply": self._apply,
            "push": self._push,
            "pull": self._pull,
            "push_function": self._push_function,
            "pull_function": self._pull_function,
            "push_serialized": self._push_serialized,
            "pull_serialized": self._pull_serialized,
            "keys": self._keys,
            "reset": self._reset,
            "set_properties": self._set_properties,
            "del_properties": self._del_properties,
            "clear_properties": self._clear_properties,
        }

    def run(self, command: Command, reply: Reply) -> None:
        """Carry out `command` and put what comes of it into `reply`."""
        self._namespace.repair()
        self._namespace.engine_id = command.engine_id
        try:
            self._methods[command.method](command, reply)
        except BaseException:
            _figures("close")  # those of code that failed half way are not the next command's
            raise
        _figures("show")

    def take_function(self, command: Command) -> None:
        """Keep the function that a command brings for later ones, even if the command itself never begins."""
        for name, value in command.values:
            if name == "function":
                self._functions.take_in(command.digest, _inline(value), forgets=command.forgets)

    def _execute(self, command: Command, reply: Reply) -> None:
        value = self._shell.execute(command.code, command.number)
        if value is None:
            return
        reply.text = text_of(value)
        reply.pretty = self._shell.pretty(value, reply.text)
        forms = self._shell.forms(value, reply.pretty)
        try:
            if forms:
                reply.displays.append(forms)
            self._return(command, reply, {"value": encode(value, command.accept)})
        except (SerializationError, ValueTooLarge) as error:  # the text is there nevertheless
            reply.value_error = str(error)

    def _apply(self, command: Command, reply: Reply) -> None:
        function: object
        arguments: Transferred | None = None
        sent: Transferred | None = None
        for name, value in command.values:
            if name == "function":
                sent = value
            else:
                arguments = value
        if command.digest:
            function = self._functions.find(command.digest, is_task=command.is_task)
        elif sent is not None:
            function = self._functions.load(_inline(sent), is_task=command.is_task)
        else:
            function = self._namespace.find_callable(command.function_name)
        args, kwargs = self._arguments(arguments, is_task=command.is_task)
        if not callable(function):
            raise TypeError(f"an object of type {type(function).__qualname__} cannot be called")
        result = function(*args, **kwargs)
        if isinstance(result, types.CoroutineType):
            result = self._awaiting.run(result)
        self._shell.ended()
        self._return(command, reply, {"value": encode(plain(result), command.accept)})

    def _arguments(
        self, value: Transferred | None, *, is_task: bool
    ) -> tuple[tuple[object, ...] | list[object], dict[str, object]]:
        if value is None:
            return (), {}
        pair = decode(_inline(value)) if is_task else self._bound(value)
        if (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and isinstance(pair[0], tuple | list)
            and isinstance(pair[1], dict)
        ):
            return pair[0], pair[1]
        raise SerializationError("arguments must be a pair of a sequence and a dictionary")

    def _push(self, command: Command, reply: Reply) -> None:
        self._namespace.put(self._dictionary(decode(_inline(dict(command.values)["namespace"]))))

    def _pull(self, command: Command, reply: Reply) -> None:
        found = self._namespace.get(command.keys)
        self._return(command, reply, {"namespace": encode(found, command.accept)})

    def _push_function(self, command: Command, reply: Reply) -> None:
        functions = self._dictionary(self._bound(dict(command.values)["namespace"]))
        variables = self._namespace.variables
        captured: dict[str, object] = {}
        bound: dict[object, object] = {}
        for name, function in functions.items():
            check_name(name)
            require_function(str(name), function)
            if isinstance(function, types.FunctionType) and function.__globals__ is not variables:
                captured |= captured_globals(function)
                function = rebind(function, variables)
            bound[name] = function
        self._namespace.put(bound)
        self._namespace.fill(captured)

    def _pull_function(self, command: Command, reply: Reply) -> None:
        functions = encode_functions(self._namespace.get(command.keys))
        self._return(command, reply, {"namespace": functions})

    def _push_serialized(self, command: Command, reply: Reply) -> None:
        self._namespace.put({name: decode(_inline(value)) for name, value in command.values})

    def _pull_serialized(self, command: Command, reply: Reply) -> None:
        found = self._namespace.get(command.keys)
        self._return(command, reply, {name: encode(value, command.accept) for name, value in found.items()})

    def _keys(self, command: Command, reply: Reply) -> None:
        reply.keys = self._namespace.keys()

    def _reset(self, command: Command, reply: Reply) -> None:
        self._awaiting.close()
        self._functions.clear()
        self._namespace.reset()
        self._shell.reset()
        self._properties.clear()
        gc.collect()  # what only cycles kept alive goes now, as a user who resets expects

    def _set_properties(self, command: Command, reply: Reply) -> None:
        self._properties.set_encoded({key: _inline(value) for key, value in command.values})

    def _del_properties(self, command: Command, reply: Reply) -> None:
        self._properties.remove(command.keys)

    def _clear_properties(self, command: Command, reply: Reply) -> None:
        self._properties.clear()

    def _bound(self, value: Transferred) -> object:
        obj, captured = decode_bound(_inline(value), self._namespace.variables)
        self._namespace.fill(captured)
        return obj

    def _dictionary(self, obj: object) -> dict[object, object]:
        if not isinstance(obj, dict):
            raise TypeError(f"a namespace must be a dictionary, not an object of type {type(obj).__qualname__}")
        return obj

    def _return(self, command: Command, reply: Reply, values: dict[str, Encoded]) -> None:
        """Put values into the reply, into files where they do not fit. ValueTooLarge over the limit."""
        sizes = [value.size for value in values.values()]
        size = sum(sizes)
        if size <= min(command.inline_limit, self._value_limit):
            reply.values.update(values)
            return
        if size > self._value_limit:
            from enginery import _reasons  # a table that only errors need

            metadata = {"size": str(size), "limit": str(self._value_limit), "option": "--value-limit"}
            raise ValueTooLarge(_reasons.text("VALUE_TOO_LARGE", metadata))
        room = command.inline_limit
        files = 0
        for (name, value), size in zip(values.items(), sizes, strict=True):
            if size <= room:
                room -= size
                reply.values[name] = value
                continue
            files += 1
            if files > _MAX_STORED:
                raise ValueTooLarge(f"more than {_MAX_STORED} large values at once: pull fewer")
            reply.values[name] = store(value)


def _figures(action: str) -> None:
    """Show the open figures of matplotlib, or close them, if it was imported with the backend of engines."""
    figures = sys.modules.get("engine_service.kernel.figures")
    if figures is not None:
        getattr(figures, action)()


def _inline(value: Transferred) -> Encoded:
    return load(value) if isinstance(value, Stored) else value
