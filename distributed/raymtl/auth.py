"""Ray's token: a cluster asks for it, this machine keeps it in a file that others cannot read.

Ray reads RAY_AUTH_MODE when it is first imported, so this module does not import it.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from raymtl.errors import InputError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PRIVATE = 0o600
TOKEN_BYTES = 32
"""As many as Ray's own generator takes."""


def token_file() -> Path:
    """Where Ray looks for the token, unless RAY_AUTH_TOKEN holds it."""
    path = os.environ.get(TOKEN_PATH)
    return Path(path) if path else Path.home() / ".ray" / "auth_token"


def has_token() -> bool:
    """Whether Ray would find a token."""
    return bool(os.environ.get(TOKEN)) or token_file().is_file()


def use_token() -> None:
    """Lets Ray, when it is imported after this, show the token to a cluster that is joined.

    Ray by itself does so for clusters it finds on this machine, not for a named address. What
    RAY_AUTH_MODE says already stays.
    """
    if has_token():
        os.environ.setdefault(MODE, "token")


def require_private_token() -> None:
    """Makes the token a local Ray asks for, or closes a file of it that others can read.

    Ray would make one itself, as readable as the umask lets it be.

    Raises:
        InputError: the file can neither be made nor closed.
    """
    if os.environ.get(TOKEN) or os.environ.get(MODE, "token").lower() != "token":
        return
    path = token_file()
    try:
        if not path.exists():
            _make(path)
        if others_can_read(path):
            path.chmod(PRIVATE)
    except OSError as error:
        raise InputError(
            "Ray's token cannot be kept private",
            f"{path}: {error}",
            "a file that only you can read",
            f"set {TOKEN_PATH} to a place you may write to, or {MODE}=disabled for an open Ray",
        ) from None


def _make(path: Path) -> None:
    """Puts a new token in its place whole, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
        with suppress(FileExistsError):
            os.link(written, path)
    finally:
        written.unlink(missing_ok=True)


def others_can_read(path: Path) -> bool:
    """Whether the file's group or everyone may read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
