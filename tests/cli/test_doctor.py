"""enginery doctor on a cluster that runs, and on one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def test_all_is_well_and_then_it_is_not(shell: Shell) -> None:
    """Exit code 0 while the cluster runs; 1, the fault and what mends it once it is down."""
    shell.run("up", "-n", "1")
    assert "all is well" in shell.run("doctor").stdout
    shell.run("down", "--keep")
    said = shell.run("doctor", code=1).stdout
    assert "none runs in" in said
    assert "enginery up --state-dir" in said
