"""The table of hazards: read, held against the tests that there are, and written as Markdown.

python tests/hazards.py writes .readme/hazards.md; a test holds that it is what comes out.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
SOURCE, TABLE = HERE / "hazards.yaml", HERE.parent / ".readme" / "hazards.md"
FIELDS = ("hazard", "harm", "control", "tests")
HEAD = """# Hazards

What could harm a patient, how, what stands against it, and the tests that would fail without it. In the manner of ISO
14971, but no risk management file: neither severity nor probability is estimated, and nobody but the authors looked.
`tests/hazards.yaml` is the source; a test holds that every test here exists and may run.

| hazard | harm | control | tests |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Hazard:
    """One row; `tests` are "file::test", with or without parameters in brackets."""

    hazard: str
    harm: str
    control: str
    tests: tuple[str, ...]


def read(path: Path = SOURCE) -> list[Hazard]:
    """The rows. Raises ValueError with every mistake of the file."""
    rows, wrong = [], []
    for number, row in enumerate(yaml.safe_load(path.read_text()), 1):
        if not isinstance(row, dict) or set(row) != set(FIELDS) or not all(row.values()):
            wrong.append(f"row {number}: wanted {', '.join(FIELDS)}, each with something in it")
            continue
        rows.append(Hazard(*(str(row[f]) for f in FIELDS[:3]), tuple(map(str, row["tests"]))))
    names = [r.hazard for r in rows]
    wrong += [f"{name} stands there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if wrong:
        raise ValueError("; ".join(wrong))
    return rows


def dead(hazards: list[Hazard], folder: Path = HERE) -> Iterator[str]:
    """Every test that is named and is not there, or never runs, in words; and every hazard without a test."""
    living: dict[str, dict[str, bool]] = {}
    for row in hazards:
        if not row.tests:
            yield f"{row.hazard}: no test"
        for node in row.tests:
            file, _, name = node.partition("::")
            if file not in living:
                living[file] = tests_of(folder / file)
            runs = living[file].get(name.partition("[")[0])
            if runs is None:
                yield f"{row.hazard}: there is no test {node}"
            elif not runs:
                yield f"{row.hazard}: {node} never runs"


def tests_of(path: Path) -> dict[str, bool]:
    """The tests that pytest collects in a file by name ("Class::test" in classes), and whether each can run."""
    if not path.is_file():
        return {}
    tree = ast.parse(path.read_text())
    off = any(_marks(node.value) for node in tree.body if _assigns_marks(node)) or any(map(_skips, tree.body))
    found = dict(_functions(tree.body, "", off))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            closed = off or any(map(_marks, node.decorator_list))
            found |= dict(_functions(node.body, f"{node.name}::", closed))
    return found


def _functions(body: list[ast.stmt], prefix: str, off: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            first = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            closed = any(map(_marks, node.decorator_list)) or not first or _skips(first[0])
            yield prefix + node.name, not (off or closed)


def _assigns_marks(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)


def _marks(node: ast.expr) -> bool:
    """Whether a mark always skips, or excuses a failure: skip, xfail, skipif(True), or parameters of which none is."""
    if isinstance(node, ast.List | ast.Tuple):
        return any(map(_marks, node.elts))
    arguments = node.args if isinstance(node, ast.Call) else []
    named = node.func if isinstance(node, ast.Call) else node
    name = named.attr if isinstance(named, ast.Attribute) else named.id if isinstance(named, ast.Name) else ""
    if name == "skipif":
        return bool(arguments) and isinstance(arguments[0], ast.Constant) and bool(arguments[0].value)
    if name == "parametrize":
        return len(arguments) > 1 and isinstance(arguments[1], ast.List | ast.Tuple) and not arguments[1].elts
    return name in ("skip", "xfail")


def _skips(node: ast.stmt) -> bool:
    """Whether a statement is `pytest.skip(...)` by itself."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("skip", "xfail")


def table(hazards: list[Hazard]) -> str:
    """The Markdown."""
    return HEAD + "".join(
        f"| {h.hazard} | {h.harm} | {h.control} | {'<br>'.join(f'`{t}`' for t in h.tests)} |\n" for h in hazards
    )


if __name__ == "__main__":
    TABLE.write_text(table(read()))
