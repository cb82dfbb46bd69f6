"""Write the versions that uv.lock holds into pyproject.toml's constraint-dependencies.

uv lock --upgrade && uv run python tests/pin_dependencies.py
"""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "constraint-dependencies = [\n", "]\n"


def main() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    versions: dict[str, set[str]] = {}
    for package in lock["package"]:
        if "registry" in package["source"]:
            versions.setdefault(package["name"], set()).add(package["version"])
    # A package locked at two versions (for two platforms) is left to the resolver.
    pins = [
        f'    "{name}=={only}",\n' for name, (only, *more) in sorted(versions.items()) if not more
    ]
    path = ROOT / "pyproject.toml"
    text = path.read_text()
    pattern = re.escape(BEGIN) + r"(?:    .*\n)*" + re.escape(END)
    path.write_text(re.sub(pattern, lambda _: BEGIN + "".join(pins) + END, text))


if __name__ == "__main__":
    main()
