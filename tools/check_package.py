"""Build sdist and wheel, install the wheel into a new environment, and use it there as a stranger would.

Nothing of the checkout is on the path: what is missing in the wheel is missing here. The wheel is built from
the sdist, so what is missing in that is missing too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("enginery", "engine_service", "controller_service")
_USE = """
import enginery
with enginery.Cluster(1) as cluster:
    assert cluster.client[0].apply(lambda x: x + 1, 41) == 42
"""
_PYRIGHT = '{"typeCheckingMode": "standard", "pythonVersion": "3.11"}'


def main() -> None:
    """Run as a command; SystemExit with what is wrong."""
    with tempfile.TemporaryDirectory(prefix="enginery-package-") as folder:
        _check(Path(folder).resolve())
    print("the package is whole")


def _check(folder: Path) -> None:
    _run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    _check_contents(wheel)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    # Binary wheels alone: nobody should need a compiler.
    install = (python, "-m", "pip", "install", "-q", "--only-binary", ":all:")
    _run(*install, wheel)
    package = Path(_run(python, "-c", "import enginery; print(enginery.__file__)", cwd=folder).strip()).parent
    if ROOT in package.parents:
        raise SystemExit(f"{package} is the checkout's")
    command = folder / "venv" / "bin" / "enginery"
    _run(command, "--version", cwd=folder)
    if _run(command, "protos", cwd=folder).strip() != str(package / "protos"):
        raise SystemExit("`enginery protos` prints another folder than the package's")
    (folder / "use.py").write_text(_USE)
    _run(python, "use.py", cwd=folder)
    _check_types(folder, python)
    _run(*install, "--dry-run", f"{wheel}[{','.join(_project()['optional-dependencies'])}]")


def _check_contents(wheel: Path) -> None:
    """All of the packages, the contract and the license are in the wheel, and nothing else."""
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"enginery/{path.relative_to(ROOT)}" for path in (ROOT / "protos").rglob("*.proto")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(f"{about}/METADATA").decode())
        license_text = archive.read(f"{about}/licenses/LICENSE").decode()
    found = {name for name in names if not name.startswith(f"{about}/")}
    if found != expected:
        raise SystemExit(
            f"not in the wheel: {expected - found}; there, but not of the package: {found - expected}"
        )
    project = _project()
    if license_text != (ROOT / "LICENSE").read_text() or metadata["License-Expression"] != project["license"]:
        raise SystemExit("the wheel has another license")
    if set(metadata.get_all("Provides-Extra", [])) != set(project["optional-dependencies"]):
        raise SystemExit("the wheel has other extras")


def _check_types(folder: Path, python: Path) -> None:
    """A user's script is checked against the installed package: a right one passes, wrong calls are found."""
    user = folder / "user"
    user.mkdir()
    for name in ("accepted.py", "refused.py"):
        (user / name).write_text((ROOT / "tests" / "typing" / name).read_text())
    (user / "pyrightconfig.json").write_text(_PYRIGHT)
    lines = (user / "refused.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# refused" in line}
    for checker in (
        (sys.executable, "-m", "mypy", "--strict", "--python-executable", python),
        (sys.executable, "-m", "basedpyright", "--level", "error", "--pythonpath", python),
    ):
        _run(*checker, "accepted.py", cwd=user)
        words = [str(word) for word in (*checker, "refused.py")]
        done = subprocess.run(words, cwd=user, capture_output=True, text=True, check=False)
        found = {int(line) for line in re.findall(r"refused\.py:(\d+).*?\berror\b", done.stdout)}
        if found != wrong:
            raise SystemExit(
                f"{checker[2]} complained about other lines than {sorted(wrong)}:\n{done.stdout}{done.stderr}"
            )


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _run(*command: object, cwd: Path = ROOT) -> str:
    """Return what a command prints; SystemExit with all of it if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
