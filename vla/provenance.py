"""Where something that was measured or trained comes from: the commit, and the digest of its data."""

import hashlib
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the repository's commit, `+changes` where tracked files differ; `unknown` outside one."""
    here = Path(__file__).parent
    try:
        head = _git("rev-parse", "HEAD", folder=here)
        changed = _git("status", "--porcelain", "--untracked-files=no", folder=here)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's files, those of its folders too, their names included."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            name, content = path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256")
            total.update(f"{name} {content.hexdigest()}\n".encode())
    return total.hexdigest()


def _git(*arguments: str, folder: Path) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return answer.stdout.strip()
