"""The contracts of pyproject.toml hold: who may know whom."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_rooms_import_only_what_their_contracts_allow() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_help_imports_none_of_the_big_libraries() -> None:
    big = "('torch', 'monai', 'mlflow', 'prefect', 'sqlalchemy', 'pydantic', 'pydicom', 'numpy', 'scipy', 'yaml')"
    code = f"""
import atexit, sys
atexit.register(lambda: print([m for m in {big} if m in sys.modules]))
from medrec.cli import main
main()
"""
    for words in (["--help"], ["--version"]):
        result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]", words


def test_top_level_holds_what_it_should() -> None:
    allowed = {"pyproject.toml", "flows", "medrec", "configs", "tests", "README.md", "LICENSE"}
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    names = {n for n in listed.stdout.split() if not n.startswith(".")}
    assert names <= allowed


def test_a_night_that_finds_nothing_to_do_has_not_imported_what_only_work_needs() -> None:
    heavy = "('torch', 'monai', 'prefect', 'sklearn', 'reportlab', 'scipy.stats', 'SimpleITK')"
    code = f"import flows, medrec.cli.nights, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
