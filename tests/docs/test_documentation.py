"""What the documentation names exists, and where its links lead there is something."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("plugins/*/*.md"),
    ]
    if "requirements" not in page.parts
)
TEST = re.compile(r"`((?:[\w/.-]+\.py)?(?:::test_\w+)?)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the repository."""
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to each page below docs/ once."""
    index = ROOT / "docs/README.md"
    pages = sorted(str(page.relative_to(index.parent)) for page in index.parent.glob("*/*.md"))
    linked = re.findall(r"\]\(([^)#\s]+)", index.read_text())
    assert sorted(link for link in linked if not link.startswith("../")) == pages


def test_decisions_are_numbered_as_their_files() -> None:
    """One after the other, with no number twice, and each heading says its own."""
    files = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        assert file.read_text().startswith(f"# {number}. "), file.name


def test_the_tests_that_hold_the_promises_exist() -> None:
    """Each test file and function that promises.md names is there, and every promise names one."""
    rows = re.findall(r"^\| (\d+) \| .* \| (.*) \|$", (ROOT / "docs/explanation/promises.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    for number, held in rows:
        place = None
        names = [name for name in TEST.findall(held) if name]
        assert names, f"promise {number} names no test"
        for name in names:
            file, _, function = name.partition("::")
            if file:
                place = ROOT / file if file.startswith(("plugins/", "src/")) else ROOT / "tests" / file
            assert place is not None
            assert place.exists(), f"promise {number}: {place}"
            assert not function or f"def {function}(" in place.read_text(), f"promise {number}: {name}"


def test_the_breaks_of_the_promises_still_fit_the_code() -> None:
    """What `make promises` replaces stands in the code, once, and the tests that must notice are there."""
    breaks = tomllib.loads((ROOT / "tools/promises.toml").read_text())["break"]
    assert {row["promise"] for row in breaks} == set(range(1, 12))
    for row in breaks:
        assert (ROOT / row["file"]).read_text().count(row["text"]) == 1, row["what"]
        for test in row["tests"]:
            assert (ROOT / test.partition("::")[0]).exists(), row["what"]


@pytest.mark.parametrize("command", ["setup", "demo", "test", "lint", "types", "docs", "bench"])
def test_the_commands_that_others_call_exist(command: str) -> None:
    """Their names were fixed from the start."""
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
