"""The ten environments that tasks are made for: a Dockerfile each, with pinned base and packages.

They are the paper's nine domain images (arXiv 2602.21193, 4.2.3) and system administration, which
its appendix lists in place of dependency management.
"""

import hashlib
import pathlib

_FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/Dockerfile")))


def dockerfile(name: str) -> str:
    """The Dockerfile of a domain.

    Raises:
        ValueError: there is no such domain.
    """
    if name not in NAMES:
        raise ValueError(f"domain {name!r} must be one of {', '.join(NAMES)}")
    return (_FOLDER / name / "Dockerfile").read_text("utf-8")


def digests() -> dict[str, str]:
    """SHA-256 of each Dockerfile, by its path."""
    return {
        f"domains/{name}/Dockerfile": hashlib.sha256(dockerfile(name).encode()).hexdigest()
        for name in NAMES
    }
