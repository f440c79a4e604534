"""What the documents say can be typed in works, and what they point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S))
]
REQUESTS = "".join(re.findall(r"^```jsonl\n(.*?)^```", (ROOT / "docs/scenarios.md").read_text(), re.M | re.S))
REST = """\
name: the-rest
tenants: [{name: a, tier: premium}]
load: [{tenant: a, arrivals: at-once, count: 3}]
"""


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_does_what_it_expects(example: str, tmp_path: Path) -> None:
    """One that shows some keys only is given the others."""
    (tmp_path / "requests.jsonl").write_text(REQUESTS)
    path = tmp_path / "example.yaml"
    path.write_text(example if example.startswith("name:") else REST + example)
    document = VirtualRun(make_plan(load_scenario(str(path)), clock="virtual")).run()
    assert document["requests"]["finished"] > 0
    assert [line for line in document["expect"] if not line["ok"]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    missing = [
        target
        for target in targets
        if not target.startswith(("http://", "https://")) and not (page.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_name_a_heading_of_it(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text())
    missing = [
        f"{target}#{anchor}"
        for target, anchor in links
        if anchor not in _anchors(page.parent / target if target else page)
    ]
    assert missing == []


def _anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
