"""Print constraints for pip: each dependency of the package, extras too, at the lowest version that it allows.

`make test-lowest` installs these; so a bound that is written is a version that was tried.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BOUNDED = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)(,<[0-9.]+)?")


def lowest() -> dict[str, str]:
    """Return name → lowest version; SystemExit if a dependency has no such bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    found = {}
    for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        match = _BOUNDED.fullmatch(requirement)
        if not match:
            raise SystemExit(
                f"pyproject.toml: {requirement!r} is not written as name>=lowest or name>=lowest,<highest"
            )
        found[match[1]] = match[2]
    return found


def main() -> None:
    """Run as a command."""
    for name, version in lowest().items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
