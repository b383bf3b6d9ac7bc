"""A terminal on one live engine: IPython's own, with the engine's names completed and explained."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from IPython.core.completer import Completion, IPCompleter
from IPython.terminal.interactiveshell import TerminalInteractiveShell
from IPython.terminal.prompts import Prompts, Token  # type: ignore[attr-defined]  # as its docs say
from traitlets.config import Config

from enginery.errors import EngineryError
from enginery.magics import EngineryMagics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from enginery.view import EngineView

_PATIENCE = 0.7  # seconds to wait for completions: an engine that runs something else has none
_INSPECTION = "engine_service.kernel.inspection"
_QUESTION = re.compile(r"(\?{0,2})\s*([^\W\d][\w.]*)\s*(\?{0,2})")


def run(view: EngineView) -> None:
    """Talk to an engine until the user leaves: `exit`, or Ctrl-D. The engine stays as it is.

    RuntimeError within IPython, where the magics do the same.
    """
    from IPython.core.getipython import get_ipython

    if get_ipython() is not None:
        raise RuntimeError("a console needs a terminal of its own; here, use %load_ext enginery and %autopx")
    settings = Config()
    settings.TerminalInteractiveShell.confirm_exit = False
    settings.TerminalInteractiveShell.term_title = False
    settings.TerminalInteractiveShell.banner1 = _banner(view)
    settings.TerminalInteractiveShell.autosuggestions_provider = None
    if hasattr(TerminalInteractiveShell, "enable_tip"):  # IPython 9
        settings.TerminalInteractiveShell.enable_tip = False
    shell: Any = TerminalInteractiveShell.instance(config=settings, user_ns={"client": view.client})
    try:
        shell.prompts = _Prompts(shell, view.engine_id)
        shell.Completer = _Completer(view, shell)
        magics = EngineryMagics(shell, "", view)
        magics.register()
        magics.every_cell(view.engine_id)
        shell.input_transformer_manager.line_transforms.insert(0, _Asked(view, shell))
        shell.show_banner()
        shell.mainloop()
    finally:
        TerminalInteractiveShell.clear_instance()


def _banner(view: EngineView) -> str:
    kernel = {engine.engine_id: engine for engine in view.client.engines}.get(view.engine_id)
    where = "" if kernel is None else f", process {kernel.pid}"
    return (
        f"Engine {view.engine_id}{where}. Everything runs there; NAME? and NAME?? explain, Tab completes,\n"
        "Ctrl-C interrupts. exit or Ctrl-D leaves, and the engine stays as it is.\n"
    )


class _Prompts(Prompts):
    """Prompts that name the engine."""

    def __init__(self, shell: Any, engine_id: int) -> None:
        super().__init__(shell)
        self._engine_id = engine_id

    def in_prompt_tokens(self) -> list[tuple[Any, str]]:
        return [
            (Token.Prompt, f"engine {self._engine_id} ["),
            (Token.PromptNum, str(self.shell.execution_count)),
            (Token.Prompt, "]: "),
        ]

    def out_prompt_tokens(self) -> list[tuple[Any, str]]:
        return []  # what comes from the engine has a tag


class _Completer(IPCompleter):
    """Completes with the names that the engine knows."""

    def __init__(self, view: EngineView, shell: Any) -> None:
        super().__init__(shell=shell, namespace={}, global_namespace={}, parent=shell)  # type: ignore[no-untyped-call]
        self._view = view

    def completions(self, text: str, offset: int) -> Iterator[Completion]:
        """Yield how the name before the cursor may go on; nothing while the engine is busy."""
        before = text[:offset]
        operation = self._view.apply(f"{_INSPECTION}.complete", before.rpartition("\n")[2], block=False)
        try:
            start, names = operation.result(_PATIENCE)
        except TimeoutError:
            operation.cancel(interrupt_only=True)  # it waits behind what runs
            return
        except EngineryError:  # the engine has gone: what is typed next says so
            return
        start += before.rfind("\n") + 1
        for name in names:
            yield Completion(start, offset, name, type="", _origin="engine")


class _Asked:
    """Turns NAME? and NAME?? into a question to the engine."""

    has_side_effects = True  # so that IPython leaves it out where it only asks whether a cell is complete

    def __init__(self, view: EngineView, shell: Any) -> None:
        self._view = view
        shell.register_magic_function(self.explain, "line", "pxinfo")

    def __call__(self, lines: list[str]) -> list[str]:
        match = _QUESTION.fullmatch("".join(lines).strip())
        marks = "" if match is None else match[1] or match[3]
        if match is None or not marks:
            return lines
        return [f"%pxinfo {match[2]} {'detail' if marks == '??' else ''}\n"]

    def explain(self, line: str) -> None:
        """Print what the engine says of a name."""
        name, *detail = line.split()
        operation = self._view.apply(f"{_INSPECTION}.describe", name, bool(detail), block=False)
        try:
            print(operation.result())
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            operation.cancel(interrupt_only=True)
            raise
