"""The scorer's modules as one file, `scorer.py` of an artifact."""

import ast
from pathlib import Path

import raymtl.scorer

MODULES = (
    "errors",
    "files",
    "program",
    "features",
    "embedding",
    "values",
    "columns",
    "scorer",
)
"""Of raymtl.scorer; each imports those before it alone."""
PACKAGE = "raymtl.scorer"
HEADER = '''"""Scores requests with the artifact it lies in: torch, safetensors and numpy alone.

    scorer = Scorer("serving/stem")                # checks every hash, replays golden requests
    scores = scorer.score({"user": [17, 17], "item": [4, 9], "tags": [[1, 2], []]})
    scores["click"]                                # float32 (2,), probabilities

Nothing of an artifact is run or unpickled: the model is a list of calls of torch operators, each of
which must stand in OPERATORS, and all numbers come from safetensors files. A Scorer is not changed
by scoring, so threads may share one. `raymtl export` joined this file of raymtl's modules; edit
those.
"""
'''


def one_file() -> str:
    """The text of `scorer.py`: all imports, then the modules' code in order."""
    imports: set[str] = set()
    bodies = []
    for name in MODULES:
        text = Path(raymtl.scorer.__path__[0], f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        imports |= {ast.unparse(n) for n in top if not _is_own(n)}
        last = max((n.end_lineno or 0 for n in tree.body[:1] + top), default=0)
        bodies.append("\n".join(text.splitlines()[last:]).strip("\n"))
    return "\n\n\n".join([f"{HEADER}\n{_sorted(imports)}", *bodies]) + "\n"


def _is_own(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)


def _sorted(imports: set[str]) -> str:
    return "\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line)))
