"""The documents agree with each other, and lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MEASURED = re.compile(r"<!-- bench -->.*<!-- /bench -->", re.S)


def read(name: str) -> str:
    return MEASURED.sub("", (ROOT / name).read_text())


def commands(text: str) -> list[str]:
    """The lines of the code blocks, without comments: those are translated."""
    blocks = re.findall(r"^```.*?^```", text, re.S | re.M)
    return [re.sub(r"\s*(^|\s)# .*", "", line) for block in blocks for line in block.splitlines()]


def test_the_chinese_readme_has_the_commands_headings_settings_and_links_of_the_english_one() -> None:
    english, chinese = read("README.md"), read("README.zh-CN.md")
    assert commands(english) == commands(chinese)
    for what in (r"^#+ ", r"`PREDICT_[A-Z_]+", r"\]\((?:docs/[a-z]+|SECURITY|CONTRIBUTING)\.md", r"`make [a-z-]+`"):
        found = [re.findall(what, text, re.M) for text in (english, chinese)]
        assert sorted(found[0]) == sorted(found[1]), what


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_within_the_project_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"""(?:\]\(|src(?:set)?=")([^)#"\s]+)""", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target
