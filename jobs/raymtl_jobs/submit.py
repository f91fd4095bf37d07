"""`raymtl submit`: any other verb as a job of a Ray cluster, with this program and its config."""

import asyncio
import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from raymtl.errors import InputError, one_line
from raymtl.storage import START_FOLDER, absolute
from raymtl_jobs import names
from raymtl_jobs.output import INTERRUPTED, say
from raymtl_jobs.wheel import pack, package_folder, pinned_requirements

LOCAL_VERBS = ("init", "convert", "submit")
"""Verbs whose work is on the machine where they are typed."""
ON_HEAD = {"node:__internal_head__": 0.001}
"""Resource that keeps the driver on the head and takes no CPU, so no training node's last one."""

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
Dashboard = Annotated[
    str | None,
    typer.Option(help="URL of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS."),
]
Retries = Annotated[
    int, typer.Option(min=0, help="Times a job is started anew, and a run resumed, if it died.")
]
Requirements = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="What the nodes install. Default: as installed here."
    ),
]
NoInstall = Annotated[
    bool, typer.Option("--no-install", help="The nodes have what raymtl needs besides itself.")
]
Verb = Annotated[str, typer.Argument(metavar="VERB", help="train, prepare, study, evaluate, ...")]


@dataclass(frozen=True)
class Job:
    """A command as Ray's Jobs API takes it."""

    arguments: list[str]
    runtime_env: dict[str, Any]
    metadata: dict[str, str]

    @property
    def entrypoint(self) -> str:
        """The shell's line; the shell does not stay, so that a signal's exit code is the job's."""
        return f"exec python -m raymtl_jobs.cli {shlex.join(self.arguments)}"


USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser raises: click's UsageError, or that of the click inside newer typers."""
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of the command: the other verb's options pass through."""


def submit(
    context: typer.Context,
    verb: Verb,
    address: Dashboard = None,
    max_retries: Retries = 0,
    requirements: Requirements = None,
    no_install: NoInstall = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job, and submit nothing.")
    ] = False,
) -> None:
    """Run a verb as a job on a Ray cluster, follow it, and end with its exit code.

    Its arguments and options follow as usual: raymtl submit train CONFIG KEY=VALUE.
    """
    params = parsed(verb, context.args)
    with tempfile.TemporaryDirectory(prefix="raymtl-submit-") as folder:
        install = None if no_install else requirements_of(requirements)
        job = made(verb, context.args, params, Path(folder), install)
        if dry_run:
            print(json.dumps(shown(job), indent=1))
            return
        client = connected(address)
        code = followed(client, job)
        for _ in range(max_retries):
            if code is not None:
                break
            say("the job's driver died; it is started anew")
            code = followed(client, retried(job))
    raise typer.Exit(1 if code is None else code)


def parsed(verb: str, arguments: list[str]) -> dict[str, Any]:
    """The verb's parameters, read by its own parser, so that a slip is told before a job starts."""
    from raymtl_jobs.cli import app

    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    known = [name for name in commands if name not in LOCAL_VERBS]
    if verb not in known:
        raise InputError(
            "this cannot be a job", f"raymtl submit {verb}", ", ".join(known), "name one of them"
        )
    try:
        return commands[verb].make_context(verb, list(arguments)).params
    except USAGE_ERROR as error:
        raise InputError(
            "the job's command would be refused",
            f"raymtl {shlex.join([verb, *arguments])}: {one_line(error)}",
            f"what `raymtl {verb} --help` says",
            "mend the command",
        ) from None


def requirements_of(given: Path | None) -> list[str]:
    """What the nodes are to install, a line each."""
    if given is None:
        return pinned_requirements()
    lines = (line.split(" #")[0].strip() for line in given.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def made(
    verb: str, arguments: list[str], params: dict[str, Any], folder: Path, install: list[str] | None
) -> Job:
    """The job of a command; its files are put into a folder that Ray ships.

    Args:
        folder: an empty one of this machine.
        install: requirements of the nodes; null where they have them.
    """
    shipped = folder / "job"
    shipped.mkdir()
    arguments = [with_shipped(argument, shipped) for argument in arguments]
    runtime_env: dict[str, Any] = {
        "working_dir": str(shipped),
        "py_modules": [str(pack(folder))],
        "env_vars": {START_FOLDER: absolute(".")},
    }
    if install is not None:
        runtime_env["pip"] = install
    return Job([verb, *arguments], runtime_env, metadata_of(verb, params))


def with_shipped(argument: str, folder: Path) -> str:
    """A YAML file of this machine is copied to what is shipped; the job finds it by its name."""
    path = Path(argument)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return argument
    if (folder / path.name).exists():
        raise InputError(
            "two files of a job have one name", argument, "different names", "rename one"
        )
    shutil.copyfile(path, folder / path.name)
    return f"./{path.name}"


def metadata_of(verb: str, params: dict[str, Any]) -> dict[str, str]:
    """What Ray's dashboard says of the job: verb, config hash, git revision, run folder."""
    found = {"verb": verb, "git_revision": revision()}
    values = config_values(verb, params)
    if values is not None:
        text = json.dumps(values, sort_keys=True, default=str)
        found["config_hash"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    run = params.get("resume") or params.get("where") or params.get("out")
    if run is None and values is not None:
        run = f"{values.get('storage', f'{verb}s')}/{values.get('name', 'run')}"
    return found | ({"run_folder": absolute(run)} if run else {})


def config_values(verb: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The verb's config with its overrides, checked as far as without its log; null without one."""
    from raymtl.config import override
    from raymtl_jobs.train import of_config

    name, overrides = params.get("config"), params.get("overrides") or []
    if not name or "=" in name:
        return None
    if verb == "train":
        return of_config([name, *overrides]).model_dump(mode="json")
    named = f"{name}_{verb}"
    values, _ = names.read(named if named in names.shipped() else name, verb)
    return override(values, overrides)


def revision() -> str:
    """The commit the program was imported from, with `-dirty` where files differ; else its hash."""
    where = package_folder("raymtl")
    try:
        described = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"
    return described.stdout.strip()


def shown(job: Job) -> dict[str, Any]:
    """The job as --dry-run prints it."""
    return {
        "entrypoint": job.entrypoint,
        "runtime_env": job.runtime_env,
        "metadata": job.metadata,
        "entrypoint_resources": ON_HEAD,
    }


def connected(address: str | None) -> Any:
    """A client of the cluster's Jobs API.

    Args:
        address: its dashboard's URL; null for RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        InputError: nobody answers there, or the token is missing or wrong.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise refusal(error) from None


def refusal(error: Exception) -> InputError:
    """A cluster that does not answer, or not without the right token, as an error for a person."""
    return InputError(
        "the cluster does not take the job",
        one_line(error),
        "the URL of a Ray dashboard (http://HEAD:8265), and the cluster's token",
        "check --address or RAY_API_SERVER_ADDRESS; put the token into ~/.ray/auth_token "
        "(chmod 600) or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token",
    )


def followed(client: Any, job: Job) -> int | None:
    """Submits a job and prints its log to its end.

    Returns:
        The exit code; null where the driver died without one.
    """
    number = submitted(client, job)
    say(f"job {number}: raymtl {shlex.join(job.arguments)}")
    for what in ("status", "logs", "stop"):
        say(f"  ray job {what} {number} --address {client.get_address()}")
    try:
        asyncio.run(_print_log(client, number))
    except KeyboardInterrupt:
        say(f"the job goes on; ray job stop {number} --address {client.get_address()} ends it")
        raise typer.Exit(INTERRUPTED) from None
    ended = client.get_job_info(number)
    say(f"job {number}: {ended.status.value.lower()}   {ended.message or ''}".rstrip())
    return exit_code(ended.status.value, ended.driver_exit_code)


def submitted(client: Any, job: Job) -> str:
    """Hands the job over; a head that has just started is asked again until it can take one."""
    for pause in (*PAUSES_S, None):
        try:
            return client.submit_job(
                entrypoint=job.entrypoint,
                runtime_env=dict(job.runtime_env),
                metadata=job.metadata,
                entrypoint_resources=ON_HEAD,
            )
        except (ConnectionError, RuntimeError) as error:
            if pause is None or "try again later" not in str(error):
                raise refusal(error) from None
            time.sleep(pause)
    raise AssertionError


def exit_code(status: str, code: int | None) -> int | None:
    """What this command ends with: the driver's own code, null where a signal or its node ended it.

    Args:
        status: the job's last one, as Ray names it.
        code: of the driver's process; negative for a signal, as subprocess has it.
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    return code if code is not None and 0 < code < 128 else None


async def _print_log(client: Any, number: str) -> None:
    """Prints what the job prints; a connection that breaks is made again where it was."""
    printed = 0
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(number):
                new = text[max(0, printed - seen) :]
                seen += len(text)
                printed = max(printed, seen)
                print(new, end="", flush=True)
        except (OSError, RuntimeError) as error:
            say(f"the log broke off: {error}")
        if client.get_job_status(number).is_terminal():
            return
        await asyncio.sleep(1)


def retried(job: Job) -> Job:
    """The job again: training goes on with the run that it began."""
    verb, *rest = job.arguments
    if verb == "train" and "--resume" not in rest and "--or-resume" not in rest:
        rest.append("--or-resume")
    return Job([verb, *rest], job.runtime_env, job.metadata)
