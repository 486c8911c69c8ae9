"""What 2018 had, and how it runs today: told in one place, and the page and the catalogue say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from danlu.domain.frameworks import FRAMEWORKS
from danlu.domain.views import FrameworkOf2018, Ran
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.legacy import FRAMEWORKS_OF_2018

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "frameworks-of-2018.md"
THIRTEEN = [
    "CNTK", "TensorFlow", "Horovod", "Keras", "Caffe", "Caffe2", "Chainer", "Deep Water", "MXNet", "DIGITS", "Theano",
    "Torch", "PyTorch",
]  # fmt: skip


def test_environments_that_are_named_exist_and_so_do_their_frameworks() -> None:
    for one in FRAMEWORKS_OF_2018:
        assert one.runs is not Ran.ENVIRONMENT or CATALOGUE[one.by].buildable
    named = {framework for entry in CATALOGUE.values() for framework in entry.frameworks}
    assert named <= set(FRAMEWORKS)


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_all_thirteen_are_told_of_in_order() -> None:
    assert [one.name for one in FRAMEWORKS_OF_2018] == THIRTEEN
    assert list(sections()) == THIRTEEN


@pytest.mark.parametrize("framework", FRAMEWORKS_OF_2018, ids=lambda one: one.name)
def test_the_page_says_what_the_platform_says(framework: FrameworkOf2018) -> None:
    text = sections()[framework.name].strip()
    assert text.startswith(f"**{framework.runs}**: {framework.by}\n")
    if framework.runs is not Ran.ENVIRONMENT:
        assert re.search(r"\bNot tried\b|\bTried\b|tests train with it", text), "say what was tried"
