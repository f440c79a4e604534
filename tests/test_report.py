"""``driftsched report``: one page that needs nothing else, with hostile names made harmless."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scheduler.bench.paper_cell import Cell, run_cell
from scheduler.cli import main
from scheduler.core.types import RUNTIME_CLASSES, TIERS
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.record.errors import FolderError
from scheduler.record.folders import Row, RunFolder, read_folders
from scheduler.virtual import VirtualRun

pytest.importorskip("matplotlib", reason="the `report` extra is not installed")
from scheduler.record.figures import INK, _one_per_policy, pictures
from scheduler.record.html import page, reproduce

HOSTILE = """
name: hostile
engine: {kind: sim, capacity: 4}
tenants:
  - {name: "<script>alert(1)</script>$x_{", tier: premium}
  - {name: "_hidden & evil", tier: batch}
load:
  - {tenant: {"<script>alert(1)</script>$x_{": 1, "_hidden & evil": 1}, arrivals: at-once, count: 40}
"""


class Page(HTMLParser):
    """What a browser would run or fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small share of the paper's matrix."""
    out = tmp_path_factory.mktemp("runs")
    for policy in ("fifo", "sjf"):
        for calibrate in (True, False):
            run_cell(Cell("static", policy, "whitespace", calibrate, 0, True, scale=0.03), out)
    run_cell(Cell("continuous", "fifo", "whitespace", True, 0, True, scale=0.03), out)
    return out


def test_one_page_with_every_figure_and_nothing_to_fetch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    assert main(["report", str(folder), "--out", str(out), "--figures", str(figures)]) == 0
    assert "7 figures" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert [int(n) for n in re.findall(r"<h2>Figure (\d+)", text)] == [2, 4, 6, 8, 9, 10, 12]
    assert page.tags.count("svg") == 7
    assert page.links
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "@import" not in text
    assert "@media print{.wide{overflow:visible;max-height:none}}" in text  # paper does not scroll
    assert INK not in text
    assert "prefers-color-scheme:dark" in text
    assert text.count("driftsched bench paper --paper-faithful --out DIR") >= 7
    names = {path.name for path in figures.iterdir()}
    assert {"figure-9-latency.png", "figure-9-latency.svg"} <= names
    assert len(names) == 14
    assert (figures / "figure-9-latency.png").read_bytes().startswith(b"\x89PNG")
    assert INK in (figures / "figure-9-latency.svg").read_text(encoding="utf-8")


def test_figures_show_what_run_json_says(folder: Path) -> None:
    runs = read_folders([folder])
    figures = {picture.id: picture for picture in pictures(runs)}
    micro_batches, _ = figures["9-latency"].figure.axes
    shown = _one_per_policy([run for run in runs if run.static])
    groups = zip(("all", *TIERS), micro_batches.containers, micro_batches.collections, strict=True)
    for group, bars, dashes in groups:
        latency = [run.document["latency_s"] for run in shown]
        e2e = [(of["all"] if group == "all" else of["tiers"][group])["e2e"] for of in latency]
        assert [bar.get_height() for bar in bars] == [six["p50"] for six in e2e]
        assert [top for _, top in np.asarray(dashes.get_offsets())] == [six["p99"] for six in e2e]
    documents = {run.name: run.document for run in runs}
    classes = figures["2-classes"]
    for axes, name in zip(classes.figure.axes, classes.runs, strict=True):
        confusion = documents[name]["estimate"]["class_confusion"]
        counts = [confusion[estimate][true] for estimate in RUNTIME_CLASSES for true in RUNTIME_CLASSES]
        assert [int(text.get_text()) for text in axes.texts] == counts


def test_hostile_tenant_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    (tmp_path / "hostile.yaml").write_text(HOSTILE, encoding="utf-8")
    plan = make_plan(load_scenario(str(tmp_path / "hostile.yaml")), clock="virtual")
    VirtualRun(plan, out=tmp_path / "run").run()
    for file in (tmp_path / "run").iterdir():  # a folder that comes from somewhere else
        file.write_text(file.read_text(encoding="utf-8").replace("& evil", "& \u202eevil"), encoding="utf-8")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert Page(text).tags.count("script") == 1  # ours
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x_{" in text
    assert "_hidden &amp; ?evil" in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    ("timeline", "shown"),
    [
        ("", "fifo"),
        ("timeline: [{at: 1s, policy: sjf}]", "fifo → sjf"),
        (
            "timeline: [{at: 1s, policy: edf}, {at: 2s, policy: fifo}, {at: 3s, policy: sjf}]",
            "fifo → … → sjf",
        ),
    ],
)
def test_a_run_of_several_policies_is_not_called_by_one(tmp_path: Path, timeline: str, shown: str) -> None:
    load = "load: [{tenant: a, arrivals: {poisson: 5}, for: 4s}]"
    (tmp_path / "s.yaml").write_text(f"name: s\ntenants: [{{name: a}}]\n{load}\n{timeline}\n")
    plan = make_plan(load_scenario(str(tmp_path / "s.yaml")), clock="virtual")
    VirtualRun(plan, out=tmp_path / "run").run()
    runs = read_folders([tmp_path / "run"])
    assert runs[0].policy == shown
    assert f"<td>{shown}</td>" in page(runs, [])


def test_reading_back(folder: Path) -> None:
    runs = read_folders([folder])
    assert runs[0].name == "continuous-fifo-whitespace-calibrated-seed0"
    assert len(runs) == 5
    for run in runs:
        assert len(run.rows) == run.document["requests"]["finished"] == 90
        right = sum(estimated == true for estimated, true in (row.classes for row in run.rows))
        assert right / 90 == pytest.approx(run.document["estimate"]["class_accuracy"])


@pytest.mark.parametrize(
    ("spoiled", "content"),
    [
        ("run.json", b"\xff{"),
        ("run.json", b"[]"),
        ("run.json", b'{"schema": 2}'),
        ("run.json", b"[" * 100_000),
        ("metrics.csv", b"\xff{"),
        ("metrics.csv", b"status,tenant_id,total_token_budget\nfinished\n"),
        ("metrics.csv", b"status\n" + b"x" * 200_000),
        ("queue_depth.csv", b"\xff{"),
        ("queue_depth.csv", b"elapsed_seconds\nsoon\n"),
        ("queue_depth.csv", b""),
        ("queue_depth.csv", b"tenant:a\n1\n"),
        ("queue_depth.csv", b"elapsed_seconds,tenant:a\n1,2\n2\n"),
    ],
)
def test_a_folder_that_is_not_whole(
    folder: Path, tmp_path: Path, spoiled: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_folders([folder])[0].name
    for file in (folder / source).iterdir():
        (tmp_path / file.name).write_bytes(content if file.name == spoiled else file.read_bytes())
    with pytest.raises(FolderError, match=rf"^not a whole run folder: .*{spoiled}: "):
        read_folders([tmp_path])
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("dispatch", ..., "has no dispatch"),
        ("engine_detail", ..., "has no engine_detail"),
        ("latency_s", ..., "has no latency_s.all.e2e.p50"),
        ("requests", 5, "has no requests.finished"),
        ("latency_s.tiers", 5, "latency_s.tiers in its run.json names nothing"),
        ("latency_s.tenants", 5, "latency_s.tenants in its run.json names nothing"),
        ("estimate.mae", "few", "estimate.mae in its run.json is no number"),
        ("latency_s.all.e2e.p99", float("inf"), "e2e.p99 in its run.json is no number"),
        ("latency_s.all.e2e.p50", 10**400, "e2e.p50 in its run.json is no number"),
        ("seed", 10**400, "seed in its run.json is no number"),
    ],
)
def test_a_document_without_what_the_page_shows(
    folder: Path, tmp_path: Path, path: str, value: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(next(folder.iterdir()), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    document = section = json.loads(file.read_text())
    *above, name = path.split(".")
    for key in above:
        section = section[key]
    if value is ...:
        del section[name]
    else:
        section[name] = value
    file.write_text(json.dumps(document))
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("driftsched: run: ")
    assert says in told


def test_a_row_that_cannot_be_drawn(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(next(folder.iterdir()), tmp_path / "run")
    rows = tmp_path / "run" / "metrics.csv"
    head, first, *others = rows.read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index("estimated_output_tokens")] = "inf"
    rows.write_text("\n".join([head, ",".join(cells), *others]))
    with pytest.raises(FolderError, match="'inf' is no number to show"):
        read_folders([tmp_path])


@pytest.mark.parametrize(
    ("invocation", "command"),
    [
        (["run", "a b.yaml", "--policy", "sjf"], "driftsched run 'a b.yaml' --policy sjf --out 'my run'"),
        (["live", "demo"], "driftsched live demo --record 'my run'"),
        (["bench", "paper"], "driftsched bench paper --out DIR"),
        ([], "# 'my run': its run.json does not say how"),
        (5, "# 'my run': its run.json does not say how"),
    ],
)
def test_the_command_that_made_a_run(invocation: object, command: str) -> None:
    assert reproduce(RunFolder("my run", {"invocation": invocation}, [], {})) == command


def test_each_folder_once_under_a_name_that_tells_it_apart(folder: Path, tmp_path: Path) -> None:
    one, two, *_ = sorted(folder.iterdir())
    for place, source in (("a", one), ("b", two)):
        shutil.copytree(source, tmp_path / place / "run")
    given = [folder, one, tmp_path / "a", tmp_path / "b" / "run"]
    names = [run.name for run in read_folders(given)]
    assert names[-2:] == [str(tmp_path / place / "run") for place in ("a", "b")]
    assert names[:-2] == sorted(path.name for path in folder.iterdir())


def test_figures_show_the_regime_that_has_more_policies() -> None:
    def ran(policy: str, dispatch: str) -> RunFolder:
        row = Row("acme", "premium", "short_qa", 1.0, 1.0, 1.0, 9.0, 9, 5.0, 1.0)
        return RunFolder(policy, {"policy": policy, "dispatch": dispatch}, [row], {})

    micro = [ran(policy, "microbatch 32/10ms") for policy in ("sjf", "fifo")]
    continuous = [ran(policy, "continuous") for policy in ("sjf", "fair", "fifo")]
    assert _one_per_policy([*continuous[:2], *micro]) == micro[::-1]
    assert [run.policy for run in _one_per_policy([*micro, *continuous])] == ["fifo", "sjf", "fair"]


def test_runs_of_other_tenants_have_each_their_own_legend(tmp_path: Path) -> None:
    def run(policy: str, tenants: list[str]) -> None:
        load = [{"tenant": name, "arrivals": "at-once", "count": 5 + n} for n, name in enumerate(tenants)]
        scenario = {"name": "x", "tenants": [{"name": name} for name in tenants], "load": load}
        (tmp_path / "s.yaml").write_text(json.dumps({**scenario, "engine": {"capacity": 4}}))
        plan = make_plan(load_scenario(str(tmp_path / "s.yaml")), clock="virtual", policy=policy)
        VirtualRun(plan, out=tmp_path / policy).run()

    def legends(*policies: str) -> list[list[str]]:
        runs = read_folders([tmp_path / policy for policy in policies])
        [figure] = [picture.figure for picture in pictures(runs) if picture.id == "8-queues"]
        found = [*figure.legends, *(legend for ax in figure.axes if (legend := ax.get_legend()))]
        return [[text.get_text().strip() for text in legend.get_texts()] for legend in found]

    run("fifo", ["a", "b"])
    run("sjf", ["a", "b"])
    run("weighted", [f"t{n}" for n in range(7)])
    assert legends("fifo", "sjf") == [["a", "b"]]
    depth = tmp_path / "sjf" / "queue_depth.csv"  # as if c had been injected: in the total alone
    header, *rows = (line.split(",") for line in depth.read_text().splitlines())
    total = header.index("total_queue_size")
    rows[0][total] = str(int(rows[0][total]) + 7)
    depth.write_text("".join(",".join(line) + "\n" for line in (header, *rows)))
    assert legends("sjf") == [["a", "b", "(others)"]]
    assert legends("fifo", "weighted") == [["b", "a"], ["t6", "t5", "t4", "t3", "t2"]]
