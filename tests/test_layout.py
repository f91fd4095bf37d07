"""The layout holds: one-way imports, no pickle, homes that are no packages, files of a size."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"distributed": "raymtl", "jobs": "raymtl_jobs", "tuning": "raymtl_tuning"}

LEVELS = [
    "errors scorer",
    "sections",
    "config",
    "features schema",
    "layout",
    "batch",
    "collectives",
    "*",
    "trainer evaluator",
]
LEVELS += [
    "launch",
    "scoring predict alone analysis loaded",
    "artifact",
    "study",
    "api",
    "",
    "raymtl_tuning",
    "raymtl_jobs",
]
"""From the bottom; a module imports its own level and those below. "*" are the parts: all that is
not named; "" is raymtl/__init__.py."""

USES_RAY = ["launch", "process_group", "cluster", "progress", "footprint", "scoring", "predict"]
USES_RAY += [
    "failures",
    "study.conduct",
    "data.feed",
    "data.ingest",
    "data.reading",
    "data.prepare",
    "data.log",
    "data.synthetic",
]
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {
    *("eval", "exec", "__import__", "torch.load", "torch.jit.load", "pd.read_pickle"),
    *("pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"),
}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 7


def package_files() -> list[Path]:
    return [f for home in HOMES for f in sorted((ROOT / home).rglob("*.py"))]


def all_files() -> list[Path]:
    return package_files() + [f for d in ("tests", "benchmarks") for f in (ROOT / d).rglob("*.py")]


def module_name(file: Path) -> str:
    """raymtl.data.order for distributed/raymtl/data/order.py."""
    parts = file.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(file: Path) -> Iterator[str]:
    """Every module a file imports anywhere; `from a import b` counts as a.b."""
    package = module_name(file).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join(filter(None, [*base, node.module]))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def level(module: str) -> int:
    """The level of a module of ours, by its first name below raymtl."""
    top, *rest = module.split(".")
    name = (rest[0] if rest else "") if top == "raymtl" else top
    if top == "raymtl" and len(rest) == 1 and not is_module(name):
        name = ""  # `from raymtl import train` imports a name of the package itself
    named = [i for i, names in enumerate(LEVELS) if name in (names.split() or [""])]
    return named[0] if named else LEVELS.index("*")


def is_module(name: str) -> bool:
    package = ROOT / "distributed" / "raymtl"
    return (package / f"{name}.py").exists() or (package / name).is_dir()


def ours(module: str) -> bool:
    return module.split(".")[0] in HOMES.values()


def dotted(node: ast.expr) -> str:
    """`a.b.c` for attributes of a name, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("home", HOMES)
def test_a_home_is_no_package_and_holds_exactly_one(home: str) -> None:
    assert not (ROOT / home / "__init__.py").exists()
    folders = [d.name for d in (ROOT / home).iterdir() if d.is_dir() and any(d.glob("*.py"))]
    assert folders == [HOMES[home]]


def test_every_folder_of_python_in_a_package_is_a_package() -> None:
    folders = {file.parent for file in package_files() if file.name != "__init__.py"}
    assert [d for d in sorted(folders) if not (d / "__init__.py").exists()] == []


def test_no_test_folder_is_named_like_a_library() -> None:
    folders = {d.name for d in (ROOT / "tests").rglob("*") if d.is_dir()}
    assert folders.isdisjoint({"ray", "torch", "dask", "distributed"})


def test_imports_go_one_way() -> None:
    upward = [
        f"{module_name(file)} imports {imported}"
        for file in package_files()
        for imported in imported_modules(file)
        if ours(imported) and level(imported) > level(module_name(file))
    ]
    assert upward == []


def test_the_scorer_imports_nothing_but_torch_safetensors_and_numpy() -> None:
    """Its modules are joined to the one file of an artifact, which a server copies."""
    allowed = {*sys.stdlib_module_names, "numpy", "safetensors", "torch"}
    others = [
        f"{module_name(file)} imports {imported}"
        for file in package_files()
        if module_name(file).startswith("raymtl.scorer")
        for imported in imported_modules(file)
        if imported.split(".")[0] not in allowed and not imported.startswith("raymtl.scorer.")
    ]
    assert others == []


def test_of_the_jobs_only_the_verb_tune_imports_tuning() -> None:
    """A command needs what it runs; every other verb works, and loads, without tuning."""
    using = {
        module_name(file)
        for file in package_files()
        if module_name(file).startswith("raymtl_jobs")
        and any(m.split(".")[0] == "raymtl_tuning" for m in imported_modules(file))
    }
    assert using == {"raymtl_jobs.tune"}


def test_only_the_named_modules_of_the_engine_use_ray() -> None:
    using = {
        module_name(file)
        for file in package_files()
        if any(m.split(".")[0] == "ray" for m in imported_modules(file))
    }
    engine = {m for m in using if m.split(".")[0] == "raymtl"}
    assert engine - {f"raymtl.{name}" for name in USES_RAY} == set()


def test_only_collectives_uses_torch_distributed() -> None:
    using = set()
    for file in package_files():
        names = list(imported_modules(file))
        names += [dotted(n) for n in ast.walk(parse(file)) if isinstance(n, ast.Attribute)]
        if any(f"{n}.".startswith("torch.distributed.") for n in names):
            using.add(module_name(file))
    assert using - {"raymtl.collectives"} == set()


def test_every_collective_says_so_in_its_first_word() -> None:
    asking = {"dist.is_initialized", "dist.get_world_size", "dist.get_rank", "dist.is_available"}
    silent = []
    for node in parse(ROOT / "distributed/raymtl/collectives.py").body:
        if not isinstance(node, ast.FunctionDef):
            continue
        calls = {dotted(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        talks = any(c.startswith("dist.") for c in calls - asking)
        if talks and not (ast.get_docstring(node) or "").startswith("Collective."):
            silent.append(node.name)
    assert silent == []


def unsafe_call(call: ast.Call) -> str | None:
    """What is unsafe about a call, or None."""
    name = dotted(call.func)
    keywords = {k.arg: k.value for k in call.keywords}
    if name in UNSAFE_CALLS:
        return name
    if name in {"yaml.load", "yaml.load_all"}:
        loader = keywords.get("Loader", call.args[1] if len(call.args) > 1 else None)
        return None if loader is not None and dotted(loader) in SAFE_LOADERS else name
    allowed = keywords.get("allow_pickle")
    if allowed is not None and not (isinstance(allowed, ast.Constant) and allowed.value is False):
        return f"{name or 'a call'}(allow_pickle=...)"
    return None


def test_nothing_unpickles_or_runs_text() -> None:
    found = []
    for file in package_files():
        found += [
            f"{module_name(file)} imports {m}"
            for m in imported_modules(file)
            if m.split(".")[0] in PICKLES
            or m in UNSAFE_CALLS
            or {"pickle", "cloudpickle"} & set(m.split("."))
        ]
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Call) and (unsafe := unsafe_call(node)):
                found.append(f"{module_name(file)}:{node.lineno} calls {unsafe}")
    assert found == []


def call(line: str) -> ast.Call:
    body = ast.parse(line, mode="eval").body
    assert isinstance(body, ast.Call)
    return body


@pytest.mark.parametrize(
    "line",
    [
        *("torch.load(f)", "eval(s)", "yaml.load(s)", "yaml.load(s, Loader=yaml.Loader)"),
        *("np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)", "__import__(m)"),
    ],
)
def test_the_check_for_unsafe_calls_finds(line: str) -> None:
    assert unsafe_call(call(line))


@pytest.mark.parametrize("line", ["model.eval()", "yaml.load(s, Loader=yaml.CSafeLoader)"])
def test_the_check_for_unsafe_calls_passes(line: str) -> None:
    assert unsafe_call(call(line)) is None


def test_files_are_at_most_400_lines() -> None:
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in all_files()}
    long = [f"{f.relative_to(ROOT)}: {n}" for f, n in lengths.items() if n > MAX_FILE_LINES]
    assert long == []


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_verb(file: Path, function: str) -> bool:
    """Whether a function is a command, whose parameters are the command line's options."""
    return file.parent.name == "raymtl_jobs" and function == file.stem


def test_functions_are_at_most_60_lines_and_7_parameters() -> None:
    found = []
    for file in all_files():
        for node in ast.walk(parse(file)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            many = num_parameters(node) > MAX_PARAMETERS and not is_verb(file, node.name)
            if length > MAX_FUNCTION_LINES or many:
                where = f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
                found.append(f"{where}: {length} lines, {num_parameters(node)} parameters")
    assert found == []
