"""Magics of IPython's shell that an engine needs otherwise: what ends a command ends its cell too."""

from __future__ import annotations

import functools
import shlex
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.error import UsageError

from engine_service.kernel import subprocesses

if TYPE_CHECKING:
    from collections.abc import Callable

_RUN_CELLS = (("ExecutionMagics", "cell", "capture"), ("HistoryMagics", "line", "rerun"))


def install(shell: Any) -> None:
    """Put them in the place of IPython's."""
    magics = shell.magics_manager.magics
    registry = shell.magics_manager.registry  # newer versions load what is asked for here
    for owner, kind, name in _RUN_CELLS:
        magics[kind][name] = _raising(shell, getattr(registry[owner], name))
    scripts = registry["ScriptMagics"]
    scripts.shebang = magics["cell"]["script"] = _script(shell, scripts.shebang)  # all others ask for that one
    shell.set_hook("editor", _edit, 0)


def _raising(shell: Any, magic: Callable[..., Any]) -> Callable[..., Any]:
    """Return a magic that raises what the cell raised that it runs."""

    @functools.wraps(magic)
    def run(*args: Any, **options: Any) -> Any:
        with shell.passing_on():
            value = magic(*args, **options)
        shell.latest.raise_error()
        return value

    return run


def _script(shell: Any, original: Callable[..., Any]) -> Callable[..., None]:
    """Return `%%script`, whose command is ended with all that it started by what interrupts the cell."""

    @functools.wraps(original)
    def script(line: str, cell: str) -> None:
        options, command = original.parser.parse_known_args(shlex.split(line))  # type: ignore[attr-defined]
        if options.bg:
            original(line, cell)
            return
        kept = [name for name in (options.out, options.err) if name]
        shell.user_ns.update(dict.fromkeys(kept, ""))
        done = subprocesses.run(
            command, cell if cell.endswith("\n") else f"{cell}\n", out=bool(options.out), err=bool(options.err)
        )
        for name, text in ((options.out, done.stdout), (options.err, done.stderr)):
            if name:
                shell.user_ns[name] = text
        if done.code and options.raise_error:
            raise CalledProcessError(done.code, command)

    return script


def _edit(*_args: object) -> NoReturn:
    raise UsageError("an engine has no editor: write files with %%writefile")
