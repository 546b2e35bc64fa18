"""The files of the project as a reader of the repository gets them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Only consulted where git does not answer, as in an unpacked source archive.
NOT_OURS = {"__pycache__", "build", "dist"}


def project_files() -> list[Path]:
    """Every file that git tracks or would add; without git, every file that is not a by-product."""
    return [path for path in _listed_by_git() or _found_by_walking(ROOT) if path.is_file()]


def project_texts() -> Iterator[tuple[str, str]]:
    """Each text file's path, relative to the root, with its text."""
    for path in project_files():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path.relative_to(ROOT).as_posix(), data.decode()


def _listed_by_git() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / name for name in listing.split("\0") if name]


def _found_by_walking(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in {".ci", ".editorconfig", ".gitignore"}
        if hidden or path.name in NOT_OURS:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _found_by_walking(path)
        else:
            yield path
