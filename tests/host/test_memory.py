"""The memory limit of an engine, on a real kernel."""

from __future__ import annotations

import psutil
import pytest

from engine_service import memory
from engine_service.engine import Engine, EngineOptions
from enginery import _ids
from enginery._reasons import DeliveryError
from tests.host.fakes import IDS, execute, until

LIMIT = 120 << 20
GREEDY = "kept = []\nwhile True:\n    kept.append(b'x' * (4 << 20))\n    import time; time.sleep(0.005)"
GREEDY_CHILDREN = (
    "import subprocess, sys\n"
    "child = 'kept = b\"x\" * (60 << 20); import time; time.sleep(60)  # a stray'\n"
    "children = [subprocess.Popen([sys.executable, '-c', child], start_new_session=True) for _ in range(2)]\n"
    "for child in children: child.wait()"
)


@pytest.mark.parametrize("code", [GREEDY, GREEDY_CHILDREN], ids=["kernel", "children"])
async def test_who_takes_too_much_is_killed_and_named(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it started, even what left its group; the error has size, limit and operation."""
    monkeypatch.setattr(memory, "GROUP_INTERVAL", 0.2)
    engine = Engine(EngineOptions(memory_limit=LIMIT))
    await engine.start()
    try:
        operation, before = IDS.mint(), engine.kernel.incarnation
        with pytest.raises(DeliveryError) as caught:
            await execute(engine, code, operation_id=operation)
        assert caught.value.reason == "MEMORY_LIMIT_EXCEEDED"
        metadata = caught.value.metadata
        assert LIMIT < int(metadata["size"]) < 3 * LIMIT
        assert (metadata["limit"], metadata["operation_id"]) == (str(LIMIT), _ids.show(operation))
        assert (await execute(engine, "'kept' in globals()")).text == "False"
        assert engine.kernel.incarnation != before
        await until(lambda: not _strays())
    finally:
        engine.stop("the test ends")
        await engine.wait_stopped()


def _strays() -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if (one.info["cmdline"] or [""])[-1].endswith("# a stray")
    ]
