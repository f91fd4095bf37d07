"""The documents are true: their commands, configs, keys and links exist, and the model trains."""

import inspect
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

import raymtl
from helpers.logs import small_log
from helpers.training import small_config, train_on_rank
from raymtl.config import Section, TrainConfig, override, parse, parse_yaml
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.synth_config import SynthConfig
from raymtl.data.synthetic import parse_log
from raymtl.models import registry
from raymtl.schema import LogSchema
from raymtl.study.config import StudyConfig
from raymtl.study.plan import searched
from raymtl_jobs import names
from raymtl_jobs.cli import app
from raymtl_jobs.train import of_config
from raymtl_tuning.checks import runs_at
from raymtl_tuning.config import TuneConfig
from raymtl_tuning.space import drawn

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTIONS = "|".join(name for name in TrainConfig.model_fields if name != "model")
KEY = re.compile(rf"`((?:{SECTIONS})(?:\.[a-z_0-9]+)+)")
ENDINGS = {"yaml", "json", "jsonl", "safetensors", "md", "py"}
"""What ends a file's name, not a key."""
STAND_IN = "demo_stem"
CLASSES = {
    "features": LogSchema,
    "sources": PrepareConfig,
    "rows": SynthConfig,
    "data": TrainConfig,
    "space": TuneConfig,
    "base": StudyConfig,
}
"""What a YAML block is, by a key of its top level."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words after `raymtl` of every line of the shell blocks that calls it."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    words = [w[1:] if w and "=" in w[0] else w for w in words]  # an environment variable first
    return [w[1:] for w in words if w[:1] == ["raymtl"]]


def mentions(page: Path) -> list[list[str]]:
    """The words after `raymtl` of every command within the text."""
    text = FENCE.sub("", page.read_text()).replace("\n", " ")
    return [span.split()[1:] for span in re.findall(r"`(raymtl [^`]+)`", text)]


def verbs() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a whole command, as its own parser reads them; raises where it refuses."""
    return verbs()[words[0]].make_context(words[0], words[1:]).params


@each_page
def test_every_command_in_a_shell_block_is_read_by_its_own_parser(page: Path) -> None:
    for words in commands(page):
        parsed(words)


@each_page
def test_every_verb_and_option_that_the_text_names_exists(page: Path) -> None:
    for words in mentions(page):
        if words[0] in ("--help", "--version"):
            continue
        assert words[0] in verbs(), words
        known = {option for p in verbs()[words[0]].params for option in p.opts} | {"--help"}
        assert {word for word in words if word.startswith("-")} <= known, words


@each_page
def test_every_config_and_key_of_a_command_exists(page: Path) -> None:
    for verb, *words in commands(page):
        params = parsed([verb, *words])
        if verb == "init" and params["name"]:
            assert params["name"] in names.shipped(), words
        if verb == "train":
            registry.parse(of_config(config_and_overrides(params)).model)
        if verb in ("synth", "prepare"):
            config, *overrides = config_and_overrides(params)
            values, source = names.read(config, verb)
            check = parse_log if verb == "synth" else partial(parse, PrepareConfig)
            check(override(values, overrides), source)


def config_and_overrides(params: dict[str, Any]) -> list[str]:
    """What a command is given; a shipped config stands for a run, and for the reader's own file."""
    given = [params["config"], *(params["overrides"] or [])]
    if params.get("resume"):
        return [STAND_IN, *filter(None, given)]
    return [STAND_IN if given[0].endswith(".yaml") else given[0], *given[1:]]


@each_page
def test_every_key_of_a_training_config_that_the_text_names_exists(page: Path) -> None:
    for dotted in KEY.findall(page.read_text()):
        if dotted.rpartition(".")[2] in ENDINGS:
            continue
        section: Any = TrainConfig
        for part in dotted.split("."):
            assert part in section.model_fields, dotted
            section = section.model_fields[part].annotation


@each_page
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The names that headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_yaml_block_is_a_valid_config(page: Path) -> None:
    for text in blocks(page, "yaml"):
        values = parse_yaml(text, page.name)
        cls: type[Section] = next(cls for key, cls in CLASSES.items() if key in values)
        made = parse(cls, values, page.name)
        if isinstance(made, LogSchema):
            made.require_ready()
        if isinstance(made, StudyConfig):
            searched(made)
        if isinstance(made, TuneConfig):
            for number in range(20):
                runs_at(made, 0, drawn(made.space, 1, number), 1)


@each_page
def test_every_python_block_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


def test_the_documents_have_something_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert sum(len(blocks(page, "yaml")) for page in PAGES) >= 3


def test_the_schema_of_the_guide_has_every_kind_of_feature() -> None:
    text = next(b for b in blocks(ROOT / "docs" / "guide.md", "yaml") if "features:\n  #" in b)
    schema = parse(LogSchema, parse_yaml(text, "guide.md"), "guide.md")
    assert {f.kind for f in schema.features} == {"categorical", "bag", "sequence", "numeric"}


def test_the_model_of_extend_md_is_short_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "extend.md"
    (text,) = blocks(page, "python")
    code = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 35
    namespace: dict[str, Any] = {"__name__": "cross"}
    exec(compile(text, str(page), "exec"), namespace)
    monkeypatch.setattr(registry, "_models", dict(registry._models))
    registry.register("cross", namespace["Cross"])
    section = parse_yaml(blocks(page, "yaml")[0], page.name)["model"]
    small_log(tmp_path, rows=3000)
    rates = ["optimizer.rows.lr=0.1", "optimizer.dense.lr=0.01", "train.num_epochs=3"]
    result = train_on_rank(small_config(str(tmp_path), *rates, model=section))
    assert result["error"] is None
    losses = [loss for loss, *_ in result["losses"].values()]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_every_call_of_the_python_interface_stands_in_the_guide_as_it_is() -> None:
    text = (ROOT / "docs" / "guide.md").read_text()
    section = text[text.index("## From Python") : text.index("## Public data sets")]
    for name in raymtl.__all__:
        assert inspect.getdoc(getattr(raymtl, name)), name
    rows = dict(re.findall(r"^\| `(\w+)\(([^`]*)\)` \|", section, re.MULTILINE))
    assert {*rows, "Model"} == {*raymtl.__all__}
    for name, parameters in rows.items():
        signature = inspect.signature(getattr(raymtl, name)).parameters.values()
        plain = [str(p.replace(annotation=p.empty)) for p in signature]
        plain = [p.replace("'", '"').replace("<built-in function print>", "print") for p in plain]
        assert parameters == ", ".join(plain), name
