"""The table of mutants fits the code, and its runner tells those that are killed from those that survive."""

import ast
from pathlib import Path

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, judge, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant: Mutant):
    ast.parse(mutated(mutant))  # raises ValueError with the remedy; a fault in the syntax would be noticed by any test
    file, _, function = mutant.tests.partition("::")
    assert f"def {function}" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_mutants_have_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A package of one function and its test."""
    for file, text in {
        "sb3_attn/__init__.py": "def double(x):\n    return 2 * x  # twice\n",
        "tests/test_double.py": "from sb3_attn import double\n\ndef test_double():\n    assert double(3) == 6\n",
        "zoo_configs/dqn.yml": "",
        "pyproject.toml": "",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("original", "replacement", "kind", "detail"),
    [
        ("2 * x", "3 * x", "killed", "by test_double.py::test_double"),
        ("2 * x", "x + x", "SURVIVED", "1 passed"),
        ("def double", "def treble", "ERROR", "cannot import name 'double'"),
    ],
)
def test_the_runner_tells_the_killed_from_those_that_survive(repository, original, replacement, kind, detail):
    verdict = judge(Mutant("", "__init__.py", original, replacement, "test_double.py"), repository)
    assert verdict.kind == kind and detail in verdict.detail


@pytest.mark.parametrize(("original", "n"), [("4 * x", 0), ("x", 2)])
def test_a_snippet_that_is_missing_or_ambiguous_is_named(repository, original, n):
    with pytest.raises(ValueError, match=rf"occurs {n} times in sb3_attn/__init__\.py; bring the table"):
        mutated(Mutant("", "__init__.py", original, "", "test_double.py"), repository)
