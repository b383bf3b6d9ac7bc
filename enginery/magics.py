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

import argparse
import ast
import re
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class

from enginery import client as clients
from enginery._cell import GROUPINGS, Cell
from enginery._presenter import presenter
from enginery._rendered import render_remotely
from enginery.client import Client
from enginery.cluster import Cluster
from enginery.errors import (
    ConnectError,
    FileTimeoutError,
    InvalidEngineID,
    OperationNotFound,
)
from enginery.group import Group
from enginery.view import EngineView
from enginery.views import EnginesView

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.core.interactiveshell import InteractiveShell

    from enginery._cell import Grouping
    from enginery.result import ExecuteResult

_NAMES = ("px", "autopx", "pxresult", "pxconfig", "pxattach")
_SELECTION = re.compile(r"-?\d*(:-?\d*){1,2}")
_NOT_PYTHON = re.compile(r"^[ \t]*[%!]", re.MULTILINE)
_MATPLOTLIB = re.compile(r"^[ \t]*%matplotlib([ \t]+inline)?[ \t]*(#.*)?$", re.MULTILINE)


class _Parser(argparse.ArgumentParser):
    """Options of a magic: what is wrong with them is a UsageError, and ends nothing."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {message}\n{self.format_usage().strip()}")


def _options(prog: str, *, call: bool = True, local: bool = False) -> _Parser:
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("-g", "--group-outputs", choices=GROUPINGS, help="show all at the end, so ordered")
    add("--stream", action="store_true", default=None, help="show output as it comes")
    add("--no-stream", action="store_false", dest="stream", help="show all at the end")
    if call:
        add("-t", "--targets", help="all, 0, 0,2, or a slice of the ids such as ::2")
        add("--timeout", type=float, help="stop it after so many seconds")
        add("-a", "--noblock", action="store_false", dest="block", default=None, help="do not wait for it")
        add("-w", "--block", action="store_true", help="wait for it")
    if local:
        add("--local", action="store_true", help="run it here too")
        add("-o", "--out", metavar="NAME", help="put the Group of its results into this variable")
    return parser


@magics_class
class EngineryMagics(Magics):
    """The magics of one set of engines; those of a suffix have names of their own, such as `%px_gpu`."""

    def __init__(
        self, shell: InteractiveShell, suffix: str = "", view: EngineView | EnginesView | None = None
    ) -> None:
        """Use the engines of `view`.

        Without one: all engines of the client that the notebook has, or else of the cluster that runs here.
        """
        super().__init__(shell)
        self._ip = shell
        self._suffix = suffix
        self._view = view
        self._client: Client | None = None if view is None else view.client
        self._targets: str | None = None
        self._timeout: float | None = None
        self._block = True
        self._stream: bool | None = None
        self._grouping: Grouping | None = None
        self._last: Group[ExecuteResult] | None = None
        self._is_local = False  # a cell runs here for --local
        self._auto = _AutoPx(self)

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
        options, code = _split(line)
        return self._px(self._parsed("%px", options), code)

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
        return self._px(self._parsed("%%px", shlex.split(line)), cell)

    def _parsed(self, prog: str, options: list[str]) -> argparse.Namespace:
        return _options(prog, local=True).parse_args(options)

    def _px(self, args: argparse.Namespace, code: str) -> Group[ExecuteResult] | None:
        __tracebackhide__ = True
        code = _MATPLOTLIB.sub("", code)  # figures come back without it
        _check_is_python(code)
        timeout = self._timeout if args.timeout is None else args.timeout
        view = self.view(args.targets)
        group = view.execute(code, block=False, timeout=timeout)
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
        cell = Cell(group.operations, presenter(self._ip))
        try:
            if stream and not group.done():
                cell.stream(stops=stops)
            else:
                cell.finish(stops=stops)
                cell.show(grouping or "type")
        except KeyboardInterrupt as interrupt:
            # Where it was waited for says nothing; what became of the call is its note.
            raise interrupt.with_traceback(None) from None
        error = group[0].exception() if len(group) == 1 else group.exception()
        if error is not None:
            render_remotely(error)
            raise error

    def pxresult(self, line: str) -> None:
        """Show what the last %px showed, or will show when it is done. --group-outputs as for %%px."""
        args = _options("%pxresult", call=False).parse_args(shlex.split(line))
        if self._last is None:
            raise UsageError(f"%pxresult{self._suffix}: nothing was run with %px{self._suffix} yet")
        self._show(self._last, args)

    def pxattach(self, line: str) -> None:
        """Follow operations that were begun elsewhere, or before a restart, from first to last.

        %pxattach ID [ID...] follows these; alone, all that run or wait now. Ctrl-C ends the following only.
        """
        parser = _options("%pxattach", call=False)
        parser.add_argument("ids", nargs="*")
        args = parser.parse_args(shlex.split(line))
        client = self.client
        ids = args.ids or [
            info.operation_id for info in reversed(client.operations(state=["queued", "running"]))
        ]
        operations = []
        for operation_id in ids:
            try:
                operations.append(client.operation(operation_id))
            except OperationNotFound:
                if args.ids:
                    raise  # else it has ended meanwhile, and was forgotten
        if not operations:
            print("nothing runs: client.operations() lists what has ended")
            return
        self._last = group = Group(operations)
        try:
            self._show(group, args, stops=False)
        except KeyboardInterrupt:
            left = [operation.operation_id for operation in operations if not operation.done()]
            print("detached, what runs goes on: %pxattach " + " ".join(left))

    # ---- every cell

    def every_cell(self) -> None:
        """Run every cell on the engines from now on, as `%autopx` does."""
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
        parser = _options("%pxconfig")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--client", metavar="NAME")
        which.add_argument("--connect", metavar="PATH")
        args = parser.parse_args(shlex.split(line))
        if args.client is not None:
            self._use(self._ip.user_ns.get(args.client), args.client)
        if args.connect is not None:
            self._client, self._view = _connect(args.connect), None
        if args.targets is not None:
            self.view(args.targets)  # or say now what is wrong with it
            self._targets = args.targets
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
            f"targets: {self._targets or 'all'}; timeout: {self._timeout or 'none'}; "
            f"{'block' if self._block else 'noblock'}; {'stream' if stream else 'no-stream'}; "
            f"group-outputs: {self._grouping or 'type'}; {self.client!r}"
        )

    def _use(self, named: object, name: str) -> None:
        if isinstance(named, EngineView | EnginesView):
            self._view, self._client, self._targets = named, named.client, None
        elif isinstance(named, Client | Cluster):
            self._view, self._client = None, named if isinstance(named, Client) else named.client
        else:
            raise UsageError(f"%pxconfig: {name} is no client, cluster or view")

    # ---- which engines

    @property
    def client(self) -> Client:
        """The client that is used: the one that was set, else the notebook's, else one of the cluster that runs
        here."""
        if self._client is None or self._client.closed:
            self._client, self._view = self._find_client(), None
        return self._client

    def _find_client(self) -> Client:
        found: dict[int, tuple[str, Client]] = {}
        for name, value in self._ip.user_ns.items():
            if name.startswith("_") or not isinstance(value, Client | Cluster):
                continue
            try:
                client = value if isinstance(value, Client) else value.client
            except RuntimeError:  # a cluster that does not run
                continue
            if not client.closed:
                found.setdefault(id(client), (name, client))
        if len(found) > 1:
            names = ", ".join(sorted(name for name, _ in found.values()))
            raise UsageError(f"several clients are open: {names}; say which by %pxconfig --client NAME")
        if found:
            return next(iter(found.values()))[1]
        return _connect(None)

    def view(self, targets: str | None = None) -> EnginesView:
        """Return the engines that are meant. UsageError if there are none such, or no cluster."""
        client = self.client
        named = targets or self._targets
        try:
            if named is None and self._view is not None:
                view = self._view
                return view if isinstance(view, EnginesView) else client[[view.engine_id]]
            several: EnginesView = client[parse_targets(named or "all")]
        except (InvalidEngineID, ValueError) as error:
            raise UsageError(str(error)) from None
        return several

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


class _AutoPx:
    """Turns every cell into a `%px` of it, while it is on."""

    has_side_effects = True  # so that IPython leaves it out where it only asks whether a cell is complete

    def __init__(self, magics: EngineryMagics) -> None:
        self._magics = magics

    @property
    def _transforms(self) -> list[Callable[[list[str]], list[str]]]:
        return self._magics.ip.input_transformer_manager.line_transforms  # type: ignore[no-any-return]

    def toggle(self) -> bool:
        """Turn it on or off; return whether it is on."""
        if self in self._transforms:
            self.off()
            return False
        self.on()
        return True

    def on(self) -> None:
        """Turn it on. What is put before it still sees the cell first."""
        self._transforms.insert(0, self)

    def off(self) -> None:
        """Turn it off."""
        if self in self._transforms:
            self._transforms.remove(self)

    def __call__(self, lines: list[str]) -> list[str]:
        """Return the cell as the shell is to run it."""
        text = "".join(lines)
        if self._magics.is_local or not text.strip() or _is_for_here(text):
            return lines
        return [f"get_ipython().run_cell_magic({'px' + self._magics.suffix!r}, '', {text!r})\n"]


def _is_for_here(text: str) -> bool:
    """Return whether a cell is one of this shell even with %autopx: our magics, and what ends the shell."""
    first = text.lstrip().split("\n", 1)[0].strip()
    return re.match(r"%%?(px|autopx|load_ext|reload_ext|unload_ext)", first) is not None or (
        text.strip() in ("exit", "quit", "exit()", "quit()")
    )


def _connect(path: str | None) -> Client:
    try:
        return clients.connect(path)
    except (ConnectError, FileTimeoutError) as error:
        raise UsageError(str(error)) from None  # where we found that out says nothing


def _check_is_python(code: str) -> None:
    """UsageError if a line of it is a magic or a shell command, which engines do not know."""
    if not _NOT_PYTHON.search(code):
        return
    try:
        compile(code, "<cell>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        line = (error.text or "").strip()
        if _NOT_PYTHON.match(line):
            raise UsageError(
                f"engines run Python, which has no `{line}`: of IPython's own lines they take "
                "%matplotlib inline alone"
            ) from None


def _split(line: str) -> tuple[list[str], str]:
    """Return the options that a line begins with, and the code after them."""
    takes = {
        option: action.nargs != 0
        for action in _options("%px", local=True)._actions
        for option in action.option_strings
    }
    options: list[str] = []
    rest = line.lstrip()
    while (match := re.match(r"(--?[a-z][a-z-]*)(=\S+|(?=\s)|$)\s*", rest)) and (
        match[1] in takes or match[1].startswith("--")  # as code, --x says nothing that x does not
    ):
        options.append(match[0].strip())
        rest = rest[match.end() :]
        if takes.get(match[1]) and not match[2]:
            value, _, rest = rest.partition(" ")
            options.append(value)
            rest = rest.lstrip()
    return options, rest


def parse_targets(text: str) -> Any:
    """Return what indexes a client: for `all`, `0`, `0,2`, `[0, 2]` or a slice such as `::2`.

    One id gives a list too. UsageError for anything else.
    """
    bare = text.strip().strip("[]").replace(" ", "")
    if bare == "all":
        return "all"
    if _SELECTION.fullmatch(bare):
        return slice(*[int(part) if part else None for part in bare.split(":")])
    try:
        return [int(part) for part in bare.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} is not all, an id, ids such as 0,2, or a slice such as ::2") from None


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
