"""IPython magics: `%load_ext enginery`, then `%px` and its like run code on the engines.

    %px a = 41                    one line
    %%px --targets 0,2            a cell
    %autopx                       every cell from here on, until it is said again
    %pxresult                     what the last one showed, or will show
    %pxattach                     follow what runs already: after a restart, or from another notebook
    %pxconfig --targets ::2       what holds where a magic says nothing else

Output comes as it is printed, tagged by engine; what is displayed there is displayed here in every form.
Ctrl-C, or the stop button, cancels the call and keeps the namespaces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from enginery._autopx import AutoPx
from enginery._cell import Cell
from enginery._presenter import presenter
from enginery._px_engines import PxEngines
from enginery._px_options import parser, split
from enginery._rendered import render_interrupt, render_remotely
from enginery.errors import OperationNotFound
from enginery.group import Group
from enginery.operations import in_order

if TYPE_CHECKING:
    import argparse

    from IPython.core.interactiveshell import InteractiveShell

    from enginery._cell import Grouping
    from enginery.client import Client
    from enginery.result import ExecuteResult
    from enginery.view import EngineView
    from enginery.views import EnginesView

_NAMES = ("px", "autopx", "pxresult", "pxconfig", "pxattach")
_MOST_FOLLOWED = 100
_MATPLOTLIB = re.compile(r"^[ \t]*%matplotlib([ \t]+inline)?[ \t]*(#.*)?$", re.MULTILINE)


@magics_class
class EngineryMagics(Magics):
    """The magics of one set of engines; those of a suffix have names of their own, such as `%px_gpu`."""

    def __init__(
        self, shell: InteractiveShell, suffix: str = "", view: EngineView | EnginesView | None = None
    ) -> None:
        """Use the engines of `view`; without one, see PxEngines."""
        super().__init__(shell)
        self._ip = shell
        self._suffix = suffix
        self._engines = PxEngines(shell, view)
        self._timeout: float | None = None
        self._block = True
        self._stream: bool | None = None
        self._grouping: Grouping | None = None
        self._last: Group[ExecuteResult] | None = None
        self._untagged: int | None = None
        self._is_local = False  # a cell runs here for --local
        self._auto = AutoPx(self)

    def register(self) -> None:
        """Make the magics known to the shell."""
        register: Any = self._ip.register_magic_function
        for name in _NAMES:
            register(getattr(self, name), "line", name + self._suffix)
        register(self.cell_px, "cell", "px" + self._suffix)

    def unregister(self) -> None:
        """Take the magics away."""
        self._auto.off()
        known = self._ip.magics_manager.magics
        for name in _NAMES:
            known["line"].pop(name + self._suffix, None)
        known["cell"].pop("px" + self._suffix, None)

    # ---- running

    def px(self, line: str) -> Group[ExecuteResult] | None:
        """Run the rest of the line on the engines, tagged output and results included.

        Options come first, as for %%px: `%px --targets 0 a = 5`.
        """
        __tracebackhide__ = True
        options, code = split(line)
        return self._px(parser("%px", local=True).parse_args(options), code)

    def cell_px(self, line: str, cell: str) -> Group[ExecuteResult] | None:
        """Run the cell on the engines.

        -t, --targets T     all, 0, 0,2, or a slice of the ids such as ::2
        --timeout S         stop it after S seconds
        -a, --noblock       do not wait: `%pxresult` shows what came of it; returns the Group
        --local             run it here too
        --stream            show output as it comes (default), --no-stream: all at the end
        -g, --group-outputs engine, type or order: all at the end, so ordered
        -o, --out NAME      put the Group into a variable
        """
        __tracebackhide__ = True
        return self._px(parser("%%px", local=True).parse_line(line), cell)

    def _px(self, args: argparse.Namespace, code: str) -> Group[ExecuteResult] | None:
        __tracebackhide__ = True
        code = _MATPLOTLIB.sub("", code)  # figures come back without it
        timeout = self._timeout if args.timeout is None else args.timeout
        view = self._engines.view(args.targets)
        try:
            group = view.execute(code, block=False, timeout=timeout)
        except ValueError as error:  # of an option
            raise UsageError(str(error)) from None
        self._last = group
        if args.out:
            self._ip.user_ns[args.out] = group
        if args.local:
            self._run_here(code)
        if not (self._block if args.block is None else args.block):
            return group
        self._show(group, args)
        return None

    def _run_here(self, code: str) -> None:
        self._is_local = True
        try:
            self._ip.run_cell(code)  # type: ignore[no-untyped-call]  # IPython's
        finally:
            self._is_local = False

    def _show(self, group: Group[Any], args: argparse.Namespace, *, stops: bool = True) -> None:
        """Show what comes of a call, and raise what went wrong: of one engine its error, else a group."""
        __tracebackhide__ = True
        grouping = args.group_outputs or self._grouping
        stream = args.stream if args.stream is not None else self._stream
        if stream is None:
            stream = args.group_outputs is None and self._grouping is None
        cell = Cell(group.operations, presenter(self._ip), self._untagged)
        try:
            if stream and not group.done():
                cell.stream(stops=stops)
            else:
                cell.finish(stops=stops)
                cell.show(grouping or "type")
        except KeyboardInterrupt as interrupt:
            raise render_interrupt(interrupt) from None
        error = group[0].exception() if len(group) == 1 else group.exception()
        if error is not None:
            raise render_remotely(error)

    def pxresult(self, line: str) -> None:
        """Show what the last %px showed, or will show when it is done. --group-outputs as for %%px."""
        args = parser("%pxresult", call=False).parse_line(line)
        if self._last is None:
            raise UsageError(f"%pxresult{self._suffix}: nothing was run with %px{self._suffix} yet")
        self._show(self._last, args)

    def pxattach(self, line: str) -> None:
        """Follow operations that were begun elsewhere, or before a restart, from first to last.

        %pxattach ID [ID...] follows these; alone, all that run or wait now. Ctrl-C ends the following only.
        """
        options = parser("%pxattach", call=False)
        options.add_argument("ids", nargs="*")
        args = options.parse_line(line)
        client = self._engines.client
        ids = args.ids or _unfinished(client)
        operations = []
        for operation_id in ids:
            try:
                operations.append(client.operation(operation_id))
            except OperationNotFound:
                if args.ids:
                    raise  # else it has ended meanwhile, and was forgotten
        if not operations:
            print("nothing runs; of client.operations(), %pxattach ID shows again what has ended")
            return
        self._last = group = Group(operations)
        try:
            self._show(group, args, stops=False)
        except KeyboardInterrupt:
            left = [operation.operation_id for operation in operations if not operation.done()]
            print("detached, what runs goes on: %pxattach " + " ".join(left))

    # ---- every cell

    def every_cell(self, untagged: int) -> None:
        """Run every cell on the engines from now on, as `%autopx`; what one prints is shown without a tag."""
        self._untagged = untagged
        self._auto.on()

    def autopx(self, line: str) -> None:
        """Run every cell on the engines from now on; said again, here. Cells of %px and its like stay what they
        are."""
        if line.strip():
            raise UsageError("%autopx takes no options: %pxconfig has them")
        print(f"%autopx{self._suffix} {'on' if self._auto.toggle() else 'off'}")

    # ---- settings

    def pxconfig(self, line: str) -> None:
        """Set what holds for %px, %%px and %autopx where they say nothing else; alone, show it.

        --targets, --timeout (0: none), --block, --noblock, --stream, --no-stream, --group-outputs as for %%px.
        --client NAME: use the client, cluster or view in this variable.
        --connect PATH: use the cluster with this state directory or client.json.
        """
        options = parser("%pxconfig")
        which = options.add_mutually_exclusive_group()
        which.add_argument("--client", metavar="NAME")
        which.add_argument("--connect", metavar="PATH")
        args = options.parse_line(line)
        if args.client is not None:
            self._engines.use(args.client)
        if args.connect is not None:
            self._engines.connect(args.connect)
        if args.targets is not None:
            self._engines.view(args.targets)  # or say now what is wrong with it
            self._engines.targets = args.targets
        if args.timeout is not None:
            self._timeout = args.timeout or None
        if args.block is not None:
            self._block = args.block
        if args.stream is not None:
            self._stream, self._grouping = args.stream, None
        if args.group_outputs is not None:
            self._grouping, self._stream = args.group_outputs, None
        if not line.strip():
            print(self._settings())

    def _settings(self) -> str:
        stream = self._grouping is None if self._stream is None else self._stream
        return (
            f"targets: {self._engines.described}; timeout: {self._timeout or 'none'}; "
            f"{'block' if self._block else 'noblock'}; {'stream' if stream else 'no-stream'}; "
            f"group-outputs: {self._grouping or 'type'}; {self._engines.client!r}"
        )

    @property
    def is_local(self) -> bool:
        """Whether the shell runs a cell that is not for the engines."""
        return self._is_local

    @property
    def suffix(self) -> str:
        """What the names of these magics end with."""
        return self._suffix

    @property
    def ip(self) -> InteractiveShell:
        """The shell."""
        return self._ip


def _unfinished(client: Client) -> list[str]:
    """Return the ids of what runs or waits, in the order in which it was submitted."""
    infos = client.operations(state=["queued", "running"], limit=_MOST_FOLLOWED + 1)
    if len(infos) > _MOST_FOLLOWED:
        print(f"these are the newest {_MOST_FOLLOWED}; client.operations() lists them all")
    return [info.operation_id for info in in_order(infos[:_MOST_FOLLOWED])]


_loaded: dict[tuple[int, str], EngineryMagics] = {}


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Do what `%load_ext enginery` says."""
    _load(shell, "", None)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Do what `%unload_ext enginery` says."""
    for key in [key for key in _loaded if key[0] == id(shell)]:
        _loaded.pop(key).unregister()


def activate(view: EngineView | EnginesView, suffix: str = "") -> None:
    """Let the magics of the running IPython use the engines of `view`; with a suffix, magics of their own.

    `client[:2].activate("_gpu")` makes `%px_gpu`, `%%px_gpu` and so on. RuntimeError outside of IPython;
    ValueError if names cannot end so.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise RuntimeError("magics are IPython's, and this is no IPython")
    if suffix and not f"px{suffix}".isidentifier():
        raise ValueError(f"%px{suffix} is no name of a magic")
    _load(shell, suffix, view)


def _load(shell: InteractiveShell, suffix: str, view: EngineView | EnginesView | None) -> None:
    old = _loaded.pop((id(shell), suffix), None)
    if old is not None:
        old.unregister()
    magics = _loaded[id(shell), suffix] = EngineryMagics(shell, suffix, view)
    magics.register()
