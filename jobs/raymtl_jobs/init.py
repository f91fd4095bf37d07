"""`raymtl init`: a shipped config as a file of one's own, to edit."""

from pathlib import Path
from typing import Annotated

import typer

from raymtl.errors import InputError
from raymtl_jobs import names
from raymtl_jobs.output import say


def init(
    name: Annotated[str | None, typer.Argument(help="A shipped config; none lists them.")] = None,
    path: Annotated[Path | None, typer.Argument(help="File to write; default ./NAME.yaml.")] = None,
) -> None:
    """Copy a shipped config to a file of your own; without NAME, list them."""
    if name is None:
        for shipped in names.shipped():
            print(f"{shipped:28} raymtl {names.verb_of(shipped)} {shipped}")
        return
    text = names.text_of(name)
    target = path or Path(f"{name}.yaml")
    target = target / f"{name}.yaml" if target.is_dir() else target
    write_new(target, text)
    say(f"wrote {target}; edit it, then: raymtl {names.verb_of(name)} {target} …")


def write_new(path: Path, text: str) -> None:
    """Writes a text file that is not there yet.

    Raises:
        InputError: something is there already, or the folder takes no file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise InputError(
            "a file is there already", str(path), "a new file", "name another, or remove it"
        ) from None
    except OSError as error:
        raise InputError(
            "a file cannot be written", f"{path}: {error}", "a folder you may write to", "name one"
        ) from None
