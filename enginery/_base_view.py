"""What views of one engine and of several have in common: whose they are, and how their calls are run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from enginery import _options
from enginery._errors_setting import ErrorsSetting
from enginery._old_names import OF_VIEWS, OldNames
from enginery._scoped import Scoped

if TYPE_CHECKING:
    from enginery._decode import Errors
    from enginery._options import Options
    from enginery.client import Client


class BaseView(Scoped, OldNames):
    """The client, and the defaults of calls: `block`, `errors` and options."""

    _old_names = OF_VIEWS
    errors = ErrorsSetting()
    """How errors of user code are raised; see `connect`."""

    def __init__(self, client: Client, errors: Errors, options: Options) -> None:
        self._client = client
        self._options = options
        self._block: bool | None = None
        self.errors = errors

    @property
    def client(self) -> Client:
        """The client that made this view."""
        return self._client

    @property
    def block(self) -> bool:
        """Whether calls that do not say so wait for their answer; by default as `Client.block`.

        For type checkers they always do: say `block=False` in the call where that matters.
        """
        return self._client.block if self._block is None else self._block

    @block.setter
    def block(self, block: bool) -> None:
        self._block = _options.flag("block", block)

    def options(
        self,
        *,
        block: bool | None = None,
        errors: Errors | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        interrupt_only: bool | None = None,
        any_incarnation: bool | None = None,
        keep_queue: bool | None = None,
    ) -> Self:
        """Return a view of the same whose calls have these settings; what is not given is as here.

        In `with view.options(timeout=5):` calls of `view` itself have them as well, up to the end of the block.

        `block` and `errors` are as the attributes. `timeout`: seconds that a call may run, then it is stopped:
        OperationTimedOut. `grace`: seconds that a call which is to stop gets after each of two interrupts
        (default: 5). `interrupt_only`: the kernel is never killed to stop a call. `any_incarnation`: a call
        that waits when the kernel dies runs on the new one, in its empty namespace. `keep_queue`: a call that
        fails clears nothing behind it. ValueError for what makes no sense.
        """
        now = self._in_force()
        made = self._copy()
        made._origin = self
        made._options = now._options.but(
            timeout=timeout,
            grace=grace,
            interrupt_only=interrupt_only,
            any_incarnation=any_incarnation,
            keep_queue=keep_queue,
        )
        made._block = now._block if block is None else _options.flag("block", block)
        made.errors = now.errors if errors is None else errors
        return made

    def activate(self, suffix: str = "") -> None:
        """Let the magics of IPython use these engines: `%px`, `%%px`, `%autopx`, `%pxresult` and `%pxconfig`.

        With a suffix, magics of their own: `client[:2].activate("_gpu")` makes `%px_gpu` and so on.
        RuntimeError outside of IPython; ValueError if names cannot end so.
        """
        from enginery import magics  # IPython need not be there

        magics.activate(self, suffix)  # type: ignore[arg-type]  # there are two kinds of views, and it knows both

    def _copy(self) -> Self:
        """Return a view of the same engines."""
        raise NotImplementedError
