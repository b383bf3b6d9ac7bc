"""A page of documentation as a transcript: commands to run, and what they print.

In the page, a block of ```` ```sh ```` is set-up: it runs before every later command and prints nothing. One of
```` ```console ```` holds commands after `$ `, continued by `> `, and what each printed. Both are bash.

`python -m tests.e2e.transcript PAGE` runs a page and writes what its commands print now into it; the state
directory is the one that ENGINERY_STATE_DIR names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TIMEOUT = 30

SHOWN_STATE = "/run/user/1000/enginery/default"
"""Path that the page shows for the state directory, wherever that is when the commands run."""

NORMALISED = (
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r'"\d+(\.\d+)?s"'), '"DURATION"'),
    (re.compile(r'("pid": *)\d+'), r"\1PID"),
    (re.compile(r"\(pid \d+\)"), "(pid PID)"),
    (re.compile(r"\bin \d+\.\d+ s\b"), "in SECONDS s"),
    (re.compile(r'("epoch": *)"\d+"'), r'\1"NUMBER"'),
    (re.compile(r'^ *"resident_bytes".*\n', re.MULTILINE), ""),  # there since the first heartbeat
    (re.compile(r"\\n +[~^]+(?=\\n)"), ""),  # Pythons differ in which expressions a traceback marks
    (re.compile(r",$", re.MULTILINE), ""),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:PORT"),
    (re.compile(r'("port": *)\d+'), r"\1PORT"),
    (re.compile(r'("hostname": *)"[^"]*"'), r'\1"HOST"'),
    (re.compile(r'"3\.\d+\.\d+[^"]*"'), '"PYTHON"'),
    (re.compile(r'("data": *)"[A-Za-z0-9+/=]*"'), r'\1"BYTES"'),
    (re.compile(r" +"), " "),  # Go's JSON writer varies its spaces on purpose
)
"""What differs from run to run, and what stands in its place when two outputs are compared."""


@dataclass(frozen=True)
class Step:
    """One command of a page: the set-up before it, its text, and what the page says it prints."""

    setup: str
    command: str
    output: str


def steps(text: str) -> list[Step]:
    """Return the commands of a page in order."""
    found, setup = [], ""
    for kind, body in _BLOCK.findall(text):
        if kind == "sh":
            setup += body
        else:
            found += [Step(setup, command, output) for command, output in _commands(body)]
    return found


def _commands(body: str) -> list[tuple[str, str]]:
    commands: list[tuple[str, str]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], ""))
        elif line.startswith("> ") and not commands[-1][1]:
            commands[-1] = (f"{commands[-1][0]}\n{line[2:]}", "")
        else:
            commands[-1] = (commands[-1][0], f"{commands[-1][1]}{line}\n")
    return commands


def run(step: Step) -> str:
    """Return what a command prints, on both streams; its exit code is not looked at, its output says it all."""
    done = subprocess.run(
        ["bash", "-c", f"{step.setup}\n{step.command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    state = os.environ.get("ENGINERY_STATE_DIR")
    return done.stdout.replace(state, SHOWN_STATE) if state else done.stdout


def normalised(output: str) -> str:
    """Return an output without what differs from run to run."""
    for pattern, replacement in NORMALISED:
        output = pattern.sub(replacement, output)
    return output.strip()


def refreshed(text: str) -> str:
    """Return a page with what its commands print now."""
    setup = ""

    def renew(block: re.Match[str]) -> str:
        nonlocal setup
        kind, body = block.groups()
        if kind == "sh":
            setup += body
            return block.group()
        parts = []
        for command, old in _commands(body):
            new = run(Step(setup, command, ""))
            shown = command.replace("\n", "\n> ")
            parts.append(f"$ {shown}\n{old if normalised(old) == normalised(new) else new}")
        return f"```console\n{''.join(parts)}```"

    return _BLOCK.sub(renew, text)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(refreshed(page.read_text()))
