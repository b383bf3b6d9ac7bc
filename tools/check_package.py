"""Build the wheel, install it into a new environment, and use it there as a stranger would.

Nothing of the checkout is on the path: what is missing in the wheel is missing here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTENTS = (
    "enginery/py.typed",
    "enginery/v1/engine_pb2.py",
    "enginery/v1/engine_pb2_grpc.py",
    "enginery/v1/engine_pb2.pyi",
    "enginery/v1/descriptor_set.binpb",
    "enginery/protos/enginery/v1/engine.proto",
    "engine_service/py.typed",
    "controller_service/py.typed",
)
_USE = """
import enginery
with enginery.Cluster(1) as cluster:
    assert cluster.client[0].apply(lambda x: x + 1, 41) == 42
"""
_RIGHT = """
import enginery

def use(client: enginery.Client) -> int:
    return client.submit(len, "abc", retries=1).result()
"""
_WRONG = """
import enginery

def use(client: enginery.Client) -> str:
    client.submit(len, "abc", retries="often")
    return client.submit(len, "abc").result()
"""


def main() -> None:
    """Run as a command; SystemExit with what is wrong."""
    with tempfile.TemporaryDirectory(prefix="enginery-package-") as folder:
        _check(Path(folder))
    print("the package is whole")


def _check(folder: Path) -> None:
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder / "wheel", ROOT)
    (wheel,) = (folder / "wheel").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    # Binary wheels alone: nobody should need a compiler.
    _run(python, "-m", "pip", "install", "-q", "--only-binary", ":all:", wheel)
    package = Path(_run(python, "-c", "import enginery; print(enginery.__file__)", cwd=folder).strip()).parent
    if ROOT in package.parents:
        raise SystemExit(f"{package} is the checkout's")
    missing = [name for name in CONTENTS if not (package.parent / name).is_file()]
    if missing:
        raise SystemExit(f"not in the wheel: {', '.join(missing)}")
    command = folder / "venv" / "bin" / "enginery"
    _run(command, "--version", cwd=folder)
    if _run(command, "protos", cwd=folder).strip() != str(package / "protos"):
        raise SystemExit("`enginery protos` prints another folder than the package's")
    (folder / "use.py").write_text(_USE)
    _run(python, "use.py", cwd=folder)
    _check_types(folder, python)


def _check_types(folder: Path, python: Path) -> None:
    """A user's script is checked against the installed package: a right one passes, a wrong call is found."""
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python)
    (folder / "right.py").write_text(_RIGHT)
    _run(*mypy, "right.py", cwd=folder)
    (folder / "wrong.py").write_text(_WRONG)
    done = subprocess.run([*mypy, "wrong.py"], cwd=folder, capture_output=True, text=True, check=False)
    for expected in ("call-overload", "return-value"):
        if expected not in done.stdout:
            raise SystemExit(f"a wrong call passed the type checker: no {expected} in\n{done.stdout}")


def _run(*command: object, cwd: Path = ROOT) -> str:
    """Return what a command prints; SystemExit with all of it if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
