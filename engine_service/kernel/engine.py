"""The engine as code that runs on it sees it: what `get_engine()` returns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine_service.kernel.display import text_of
from engine_service.kernel_messages import DisplayData, Progress
from enginery._codec import encode
from enginery._encoded import Codec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engine_service.kernel.namespace import Namespace
    from engine_service.kernel.properties import Properties

_PROGRESS_INTERVAL = 0.05  # seconds
_PROGRESS_TEXT = 200  # characters


class ProgressReports:
    """Thins out what running code reports, so that it may report as often as it likes."""

    def __init__(self, send: Callable[[Progress], None]) -> None:
        """`send` passes a report on to the host."""
        self._send = send
        self._next = 0.0

    def report(self, fraction: float, text: str) -> None:
        """Pass a report on, unless another was a moment ago. ValueError if `fraction` is not from 0 to 1."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        now = time.monotonic()
        if now >= self._next or fraction == 1:
            self._next = now + _PROGRESS_INTERVAL
            shown = str(text).encode("utf-8", "backslashreplace").decode()  # lone surrogates fit nowhere
            self._send(Progress(float(fraction), shown[:_PROGRESS_TEXT]))

    def restart(self) -> None:
        """Let the next report pass: an operation begins."""
        self._next = 0.0


class RunningEngine:
    """Id, properties, progress and display; nothing about it can be set but by their own methods."""

    __slots__ = ("_display", "_forms", "_namespace", "_progress", "_properties")

    _namespace: Namespace
    _properties: Properties
    _display: Callable[[DisplayData], None]
    _progress: ProgressReports
    _forms: Callable[[object, str], DisplayData | None]

    def __init__(
        self,
        namespace: Namespace,
        properties: Properties,
        display: Callable[[DisplayData], None],
        progress: ProgressReports,
        forms: Callable[[object, str], DisplayData | None],
    ) -> None:
        """Take what it stands for; `display` passes on what is displayed, `forms` says in which forms."""
        super().__setattr__("_namespace", namespace)
        super().__setattr__("_properties", properties)
        super().__setattr__("_display", display)
        super().__setattr__("_progress", progress)
        super().__setattr__("_forms", forms)

    @property
    def id(self) -> int:
        """Its id; -1 while it is not registered."""
        return self._namespace.engine_id

    @property
    def properties(self) -> Properties:
        """Its properties: text keys, values copied in and out."""
        return self._properties

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how much of the running operation is done, from 0 to 1, and a short text."""
        self._progress.report(fraction, text)

    def display(self, obj: object, metadata: Mapping[str, object] | None = None) -> None:
        """Show `obj` in every form that it offers, in its place among the output.

        `metadata` holds hints as JSON. ValueTooLarge if the forms have more than 64 MB, or their texts than 16.
        """
        text = text_of(obj)
        shown = self._forms(obj, text) or DisplayData({"text/plain": text})
        if metadata:
            encode(dict(metadata), (Codec.JSON,))  # SerializationError if it is none
            shown = DisplayData(shown.data, {**shown.metadata, **metadata})
        self._display(shown)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse."""
        raise AttributeError(f"{name!r} of an engine cannot be set; use get_engine().properties[key] = value")

    def __delattr__(self, name: str) -> None:
        """Refuse."""
        raise AttributeError(f"{name!r} of an engine cannot be deleted")

    def __repr__(self) -> str:
        """Say which engine it is."""
        return f"<engine {self.id}>"
