"""All that is fuzzed, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz.file_target import FileTarget
from tests.fuzz.journal_target import JournalTarget
from tests.fuzz.kernel_target import KernelTarget
from tests.fuzz.link_target import LinkTarget
from tests.fuzz.reply_target import ReplyTarget
from tests.fuzz.request_target import RequestTarget
from tests.fuzz.state_target import StateTarget
from tests.fuzz.stream_target import (
    DirectTarget,
    HostTarget,
    RegistrationTarget,
    SessionTarget,
    TransferTarget,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.campaign import Target
    from tests.fuzz.rules import Watch

TARGETS: dict[str, Callable[[Watch], Target]] = {
    KernelTarget.name: KernelTarget,
    RequestTarget.name: RequestTarget,
    SessionTarget.name: SessionTarget,
    DirectTarget.name: DirectTarget,
    RegistrationTarget.name: RegistrationTarget,
    HostTarget.name: HostTarget,
    TransferTarget.name: TransferTarget,
    ReplyTarget.name: ReplyTarget,
    LinkTarget.name: LinkTarget,
    FileTarget.name: FileTarget,
    StateTarget.name: StateTarget,
    JournalTarget.name: JournalTarget,
}
