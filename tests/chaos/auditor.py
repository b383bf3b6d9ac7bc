"""Reads answers again, by operation id, when all is over: they must be what was heard the first time.

    python -m tests.chaos.auditor FOLDER CLIENT...

It asks for a sample of what was heard lately: some of it is with hosts that live, some only in the journal.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import enginery
from enginery import EngineryError
from tests.chaos import jobs, ledger

SAMPLE = 100  # answers of each client
LATELY = 130  # of which they are taken: all of them take half of what the journal of a run may


def audit(folder: Path, clients: list[str]) -> None:
    """Note what is answered now."""
    notes = ledger.Notes(folder / "notes-again")
    with enginery.connect(folder / "state" / "client.json", timeout=30.0) as client:
        for name in clients:
            heard, _ = ledger.read_notes(folder / f"notes-{name}")
            answered = [
                sent for sent in heard.values() if sent.answer and sent.answer.nonce and sent.operation_id
            ]
            lately = answered[-LATELY:]
            for sent in random.Random(name).sample(lately, min(SAMPLE, len(lately))):
                _ask(client, notes, sent)


def _ask(client: enginery.Client, notes: ledger.Notes, sent: ledger.Sent) -> None:
    job = jobs.Job(sent.name, sent.kind)
    try:
        result = client.operation(sent.operation_id).result(30.0)
    except ValueError as error:
        notes.again(sent.name, "raised", str(error))
    except EngineryError as error:
        notes.again(sent.name, error.reason or type(error).__name__)
    else:
        notes.again(sent.name, "ok", job.nonce(result.value, result.stdout))


if __name__ == "__main__":
    audit(Path(sys.argv[1]), sys.argv[2:])
