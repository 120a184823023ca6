"""Every hazard has a living test, and what README shows is the table."""

import os
import subprocess
import sys
from pathlib import Path

import hazards
import pytest
from hazards import Hazard

README = Path(__file__).parent.parent / "README.md"


def test_every_hazard_has_tests_that_are_there_and_run() -> None:
    assert list(hazards.dead(hazards.read())) == []


def test_readme_links_the_table_and_it_is_what_comes_out() -> None:
    assert hazards.TABLE.read_text() == hazards.table(hazards.read()), "run: python tests/hazards.py"
    assert "(.readme/hazards.md)" in README.read_text()


DEAD = {
    "gone": "",
    "marked": "@pytest.mark.skip(reason='x')\ndef test_it(): assert True",
    "marked bare": "@pytest.mark.skip\ndef test_it(): assert True",
    "excused": "@pytest.mark.xfail\ndef test_it(): assert False",
    "always": "@pytest.mark.skipif(True, reason='x')\ndef test_it(): assert True",
    "at once": "def test_it():\n    'why'\n    pytest.skip('x')",
    "whole file": "pytestmark = [pytest.mark.slow, pytest.mark.skip]\ndef test_it(): assert True",
    "whole file at once": "pytest.skip('x', allow_module_level=True)\ndef test_it(): assert True",
    "no parameters": "@pytest.mark.parametrize('x', [])\ndef test_it(x): assert True",
    "within another": "def helper():\n    def test_it(): assert True",
    "in a class that is not collected": "class Helper:\n    def test_it(self): assert True",
    "commented": "# def test_it(): assert True",
    "in text": "'''\ndef test_it(): assert True\n'''",
    "only words": "def test_it():\n    'nothing'",
}


@pytest.mark.parametrize("what", DEAD)
def test_a_test_that_is_gone_or_never_runs_is_named(tmp_path: Path, what: str) -> None:
    (tmp_path / "test_a.py").write_text("import pytest\n" + DEAD[what])
    (said,) = hazards.dead([Hazard("fire", "burns", "water", ("test_a.py::test_it",))], tmp_path)
    assert said.startswith("fire: ")


@pytest.mark.parametrize(
    "content",
    [
        "def test_it(): assert True",
        "@pytest.mark.parametrize('x', [1])\ndef test_it(x): assert True",
        "@pytest.mark.skipif(sys.platform == 'win32', reason='x')\ndef test_it(): assert True",
        "@pytest.mark.slow\ndef test_it(a):\n    if not a: pytest.skip('no data')\n    assert a",
    ],
)
def test_a_test_that_may_run_is_alive(tmp_path: Path, content: str) -> None:
    (tmp_path / "test_a.py").write_text("import pytest, sys\n" + content)
    rows = [Hazard("fire", "burns", "water", ("test_a.py::test_it[1]", "test_a.py::test_it"))]
    assert list(hazards.dead(rows, tmp_path)) == []


def test_a_hazard_without_tests_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    rows = [Hazard("fire", "burns", "water", ()), Hazard("flood", "wet", "dam", ("test_b.py::test_it",))]
    assert list(hazards.dead(rows, tmp_path)) == ["fire: no test", "flood: there is no test test_b.py::test_it"]


def test_rows_that_say_too_little_or_stand_twice_are_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    row = "- {hazard: fire, harm: burns, control: water, tests: [a::b]}\n"
    path.write_text(row + row + "- {hazard: flood, harm: wet, control: '', tests: [a::b]}\n")
    with pytest.raises(ValueError, match=r"row 3: wanted hazard.*fire stands there twice"):
        hazards.read(path)


def test_names_found_by_reading_are_those_that_pytest_collects() -> None:
    command = [sys.executable, "-m", "pytest", "-n0", "--collect-only", "tests/test_series.py"]
    plain = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    listed = subprocess.run(command, cwd=README.parent, env=plain, capture_output=True, text=True).stdout
    collected = {line.partition("::")[2].partition("[")[0] for line in listed.splitlines() if "::" in line}
    assert collected == set(hazards.tests_of(Path(__file__).with_name("test_series.py")))
