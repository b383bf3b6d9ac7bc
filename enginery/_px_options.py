"""What a magic was given: its options, and the code that is to run."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import NoReturn

from IPython.core.error import UsageError

from enginery._cell import GROUPINGS


class Parser(argparse.ArgumentParser):
    """Options of a magic: what is wrong with them is a UsageError, and ends nothing."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {message}\n{self.format_usage().strip()}")

    def parse_line(self, line: str) -> argparse.Namespace:
        """Return the options of a line."""
        try:
            words = shlex.split(line)
        except ValueError as error:  # a quotation without an end
            raise UsageError(f"{self.prog}: {error}") from None
        return self.parse_args(words)


def parser(prog: str, *, call: bool = True, local: bool = False) -> Parser:
    """Return the parser of a magic; `call`: it makes a call, `local`: which may run here as well."""
    made = Parser(prog=prog, add_help=False, allow_abbrev=False)
    add = made.add_argument
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
    return made


def split(line: str) -> tuple[list[str], str]:
    """Return the options that a line begins with, and the code after them."""
    takes = {
        option: action.nargs != 0
        for action in parser("%px", local=True)._actions
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
            options += [value] if value else []
            rest = rest.lstrip()
    return options, rest
