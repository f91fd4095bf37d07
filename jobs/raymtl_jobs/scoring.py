"""What evaluate and predict share: the dry run and the place of the result."""

from raymtl.config import LaunchSection
from raymtl.errors import InputError
from raymtl_jobs.output import say, show_config


def show_plan(where: str, which: str, log: str, launch: LaunchSection, labels: bool) -> None:
    """Checks checkpoint and log as the real thing would, and says what would run."""
    from raymtl.scoring import Pick, checked

    found, payload, config = checked(where, Pick(which), log, labels)
    index = payload["index"]
    show_config(config.model_copy(update={"launch": launch}))
    what = "evaluate" if labels else "predict with"
    say(f"would {what} {found.folder.url} on {index.num_rows:,} rows of {log}")


def results_folder(where: str, log: str) -> str:
    """Folder of an evaluation's result: below the run, by the log's name.

    That of a single checkpoint lies below its run too, or beside it where it has none.
    """
    from raymtl.run import CONFIG, home_of
    from raymtl.storage import Folder

    folder = where.rstrip("/")
    if Folder(folder).size("trainer.json") is not None or Folder(folder).size(CONFIG) is None:
        folder = home_of(folder)
    name = log.rstrip("/").rpartition("/")[2].removesuffix(".parquet") or "log"
    return f"{folder}/evaluate/{name}"


def require_room(url: str) -> None:
    """Raises InputError unless the result can be written there; before the work, not after."""
    from raymtl.storage import Folder

    try:
        Folder(url).require_writable()
    except InputError as error:
        raise InputError(
            "the result could not be written", error.got, error.wanted, "name a file with --out"
        ) from None
