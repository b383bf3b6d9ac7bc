"""A census of Python's standard library: engines parse every module of it, the client adds up what they found.

    enginery run examples/stdlib_census.py -n 4     on a temporary cluster
    python examples/stdlib_census.py                on the cluster that runs here, or else on a temporary one
    python examples/stdlib_census.py asyncio        of one package only

Real code, real work for the processor. The result is checked against a serial run of the same function here.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import enginery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith, ast.Match)
CHUNKS_PER_ENGINE = 24  # small enough that no engine ends long before the others


@dataclass
class Census:
    """What was found in some files. The order of files does not matter: winners are named, and so unique."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    deepest: tuple[int, str] = (0, "")
    longest: tuple[int, str] = (0, "")
    names: Counter[str] = field(default_factory=Counter)
    unparsable: int = 0

    def add(self, other: Census) -> None:
        """Take in what was found in other files."""
        self.files += other.files
        self.lines += other.lines
        self.functions += other.functions
        self.classes += other.classes
        self.deepest = max(self.deepest, other.deepest)
        self.longest = max(self.longest, other.longest)
        self.names.update(other.names)
        self.unparsable += other.unparsable


def take_census(paths: list[str]) -> Census:
    """Parse files and count. This is what runs on the engines."""
    census = Census()
    for path in paths:
        source = Path(path).read_bytes()
        where = "/".join(Path(path).parts[-2:])
        census.files += 1
        census.lines += source.count(b"\n")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # samples of bad code are part of the library's own tests
            census.unparsable += 1
            continue
        todo: list[tuple[ast.AST, int]] = [(tree, 0)]
        while todo:
            node, depth = todo.pop()
            if isinstance(node, FUNCTIONS):
                census.functions += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                census.longest = max(census.longest, (length, f"{where}: {node.name}"))
                depth = 0
            elif isinstance(node, ast.ClassDef):
                census.classes += 1
            elif isinstance(node, ast.Name):
                census.names[node.id] += 1
            elif isinstance(node, BRANCHES):
                depth += 1
                census.deepest = max(census.deepest, (depth, f"{where}:{node.lineno}"))
            for child in ast.iter_child_nodes(node):
                is_elif = isinstance(child, ast.If) and isinstance(node, ast.If) and node.orelse == [child]
                todo.append((child, depth - is_elif))
    return census


def library_files(package: str) -> list[Path]:
    """Return every module of the running Python's standard library, or of one package of it; largest first."""
    root = Path(sysconfig.get_paths()["stdlib"], package)
    found = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def deal(files: list[Path], count: int) -> list[list[str]]:
    """Deal files out into chunks of about the same size: large ones come first, so each gets its share."""
    chunks: list[list[str]] = [[] for _ in range(min(count, len(files)))]
    for number, path in enumerate(files):
        chunks[number % len(chunks)].append(str(path))
    return chunks


def on_engines(client: enginery.Client, chunks: list[list[str]], done: Callable[[int], None]) -> Census:
    """Map over the chunks, each on whichever engine has room; `done` hears how many files each had."""
    total = Census()
    for part in client.map(take_census, chunks, chunksize=1, ordered=False):
        total.add(part)
        done(part.files)
    return total


def here(chunks: list[list[str]], done: Callable[[int], None]) -> Census:
    """Do the same serially in this process."""
    total = Census()
    for chunk in chunks:
        part = take_census(chunk)
        total.add(part)
        done(part.files)
    return total


@contextmanager
def a_client() -> Iterator[enginery.Client]:
    """Connect to the cluster that runs here, or start one for as long as this takes."""
    try:
        client = enginery.connect()
    except enginery.ControllerNotRunning:
        with enginery.Cluster() as cluster:
            yield cluster.client
        return
    with client:
        client.wait_for_engines(1, timeout=30)
        yield client


def timed(
    console: Console, title: str, files: int, count: Callable[[Callable[[int], None]], Census]
) -> tuple[Census, float]:
    """Return a census and its seconds, with a progress bar if someone watches."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=files)
        start = time.perf_counter()
        census = count(lambda number: progress.advance(task, number))
        return census, time.perf_counter() - start


def report(console: Console, census: Census) -> None:
    """Print the table."""
    table = Table(title="Python's standard library", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)
    table.add_column("what")
    table.add_column("how many", justify="right")
    table.add_column("where")
    table.add_row("files", f"{census.files:,}")
    table.add_row("lines", f"{census.lines:,}")
    table.add_row("functions", f"{census.functions:,}")
    table.add_row("classes", f"{census.classes:,}")
    table.add_row("longest function", f"{census.longest[0]:,}", census.longest[1])
    table.add_row("deepest branch", f"{census.deepest[0]:,}", census.deepest[1])
    for name, count in census.names.most_common(5):
        table.add_row("a most used name", f"{count:,}", name)
    table.add_row("not parsable, on purpose", f"{census.unparsable:,}")
    console.print(table)


def main() -> None:
    """Take the census twice, and compare."""
    parser = argparse.ArgumentParser(description="Take a census of Python's standard library on engines.")
    parser.add_argument("package", nargs="?", default="", help="one package, such as asyncio (default: all)")
    package = parser.parse_args().package
    files = library_files(package)
    if not files:
        parser.error(f"there is no package {package} in the standard library")
    console = Console()
    with a_client() as client:
        engines = len(client)
        chunks = deal(files, CHUNKS_PER_ENGINE * engines)
        census, parallel = timed(
            console, f"{engines} engines", len(files), lambda done: on_engines(client, chunks, done)
        )
    check, serial = timed(console, "serially", len(files), lambda done: here(chunks, done))
    report(console, census)
    console.print(
        f"{engines} engines: {parallel:.1f} s   serially: {serial:.1f} s   ({serial / parallel:.1f} x)"
    )
    if census != check:
        raise SystemExit(
            "the engines found something else than the serial run: is their Python another version?"
        )
    console.print("The engines found exactly what the serial run found.")


if __name__ == "__main__":
    main()
