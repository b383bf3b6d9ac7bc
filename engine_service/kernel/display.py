"""How a value shows: its text, its pretty text, and the forms of its `_repr_*_` methods."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from engine_service.kernel_messages import DisplayData

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TEXT = 1 << 20  # characters of a repr
_MAX_PRETTY = 100_000  # pprint of more takes seconds
_MAX_NAME = 1000
_FORMS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/pdf": "_repr_pdf_",
    "application/json": "_repr_json_",
    "application/javascript": "_repr_javascript_",
}
_BINARY = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"})
_SAME_PRETTY = (bool, int, float, complex, bytes)


def text_of(value: object) -> str:
    """Return `repr(value)`, its middle cut out if it is very long; a text that says so if that raises."""
    try:
        return cut(str.__str__(repr(value)), MAX_TEXT)
    except Exception as error:
        kind = type_name(type(value))
        return f"<{kind} object whose repr() raised {type_name(type(error))}: {_message(error)}>"


def type_name(kind: type) -> str:
    """Return a class's own name, whatever its metaclass makes of that."""
    return cut(str.__str__(type.__dict__["__qualname__"].__get__(kind)), _MAX_NAME)


def module_name(kind: type) -> str:
    """Return the name of a class's module; empty if it has none."""
    try:
        module = type.__dict__["__module__"].__get__(kind)
    except AttributeError:  # made where `__name__` was deleted
        return ""
    return cut(module, _MAX_NAME) if type(module) is str else ""


def _message(error: Exception) -> str:
    try:
        return cut(str.__str__(str(error)), 200)
    except Exception:  # its own __str__ ran
        return "(and its text cannot be had)"


def cut(text: str, limit: int) -> str:
    """Return `text` with its middle replaced by a mark if it is over `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n[... {len(text) - limit} characters left out ...]\n{text[-(limit // 2) :]}"


def pretty_of(value: object, text: str) -> str:
    """Return `value` as pprint shows it, `text` if that would take long or fails."""
    if type(value) in _SAME_PRETTY or len(text) > _MAX_PRETTY:
        return text
    try:
        import pprint  # some milliseconds that few kernels need

        return cut(pprint.pformat(value), MAX_TEXT)
    except Exception:  # a __repr__ of the user's ran
        return text


def forms_of(value: object, text: str) -> DisplayData | None:
    """Return every form that `value` offers, None if only text. A method that raises offers nothing."""
    if module_name(type(value)) == "builtins":
        return None
    offered = _offer(value, "_repr_mimebundle_")
    offers = list(offered.items()) if type(offered) is dict else []
    offers += [(mime, _offer(value, method)) for mime, method in _FORMS.items()]
    offers.append(("image/png", figure_of(value)))
    data, metadata = _collect(offers)
    return DisplayData({"text/plain": text} | data, metadata) if data else None


def bundle(data: Mapping[str, object], metadata: Mapping[str, object], text: str) -> DisplayData:
    """Return forms and hints as IPython's formatters make them; `text` is there if they have no plain one."""
    forms, _ = _collect(list(data.items()))
    hints = {mime: hint for mime, hint in metadata.items() if hint and _as_json(hint) is not None}
    return DisplayData({"text/plain": text} | forms, hints)


def _collect(offers: list[tuple[Any, Any]]) -> tuple[dict[str, str | bytes], dict[str, object]]:
    """Return what can be shown of forms by MIME type, the first of each, and their hints."""
    data: dict[str, str | bytes] = {}
    metadata: dict[str, object] = {}
    for mime, content in offers:
        if type(mime) is not str:
            continue
        if isinstance(content, tuple) and len(content) == 2:
            content, hints = content
            metadata |= {mime: _as_json(hints)} if _as_json(hints) is not None else {}
        if isinstance(content, dict | list):
            content = _json_text(content)
        if isinstance(content, str):
            text = str.__str__(content)  # exact: a subclass may lie about its length
            data.setdefault(mime, _bytes_of(mime, text) or text)
        elif isinstance(content, bytes):
            data.setdefault(mime, bytes(memoryview(content)))
    return data, metadata


def _bytes_of(mime: str, text: str) -> bytes | None:
    """Return a picture that comes as base64, as many of IPython's classes give it, as its bytes."""
    if mime not in _BINARY:
        return None
    import binascii

    try:
        return binascii.a2b_base64(text)
    except ValueError:
        return None


def _offer(value: object, method: str) -> object:
    try:
        if getattr(type(value), method, None) is None:  # the type's: some objects have every attribute
            return None
        offered = getattr(value, method)()
    except Exception:  # the user's method ran: only this form is lost
        return None
    if method == "_repr_mimebundle_" and isinstance(offered, tuple) and offered:
        return offered[0]
    return offered


def figure_of(value: Any) -> bytes | None:
    """Return a matplotlib figure as PNG, None for anything else: figures leave it to others how they show."""
    figure = sys.modules.get("matplotlib.figure")
    if figure is None or getattr(figure, "Figure", None) not in type(value).__mro__:
        return None
    try:
        buffer = io.BytesIO()
        value.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()
    except Exception:  # such as a text in it that cannot be drawn: the text form is there
        return None


def _json_text(content: object) -> str | None:
    from enginery._codec import encode
    from enginery._encoded import Codec
    from enginery.errors import SerializationError

    try:
        return bytes(encode(content, (Codec.JSON,)).parts[0]).decode()
    except SerializationError:
        return None


def _as_json(hints: object) -> object:
    return hints if _json_text(hints) is not None else None
