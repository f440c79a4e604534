"""``driftsched report``: one self-contained page of run folders; nothing is fetched when it is opened."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scheduler.record.figures import ReportFigure, pictures, plain
from scheduler.record.folders import RunFolder, read_folders


def write_report(folders: Sequence[Path], out: Path, figures: Path | None) -> int:
    """Write the page, and each figure as PNG and SVG to ``figures``; returns how many figures there are.

    Raises FolderError, OSError.
    """
    runs = read_folders(folders)
    drawn = list(pictures(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(runs, drawn), encoding="utf-8")
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            for kind in ("svg", "png"):
                (figures / f"figure-{picture.id}.{kind}").write_bytes(picture.file(kind))
    return len(drawn)


def page(runs: Sequence[RunFolder], drawn: Sequence[ReportFigure]) -> str:
    """The whole document."""
    tables = f"<h2>Runs</h2>{_table(_RUN_COLUMNS, runs)}<h2>Tenants</h2>{_tenants(runs)}"
    simulated = sum(run.simulated for run in runs)
    kinds = sorted({str(run.told("engine_detail")) for run in runs})
    lead = f"Runs: {len(runs)}; simulated: {simulated}; on {'; '.join(kinds)}."
    by_name = {run.name: run for run in runs}
    sections = "".join(_section(picture, by_name) for picture in drawn)  # last: it takes seconds
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width"><title>DriftSched report</title>'
        f"<style>{_CSS}</style></head><body><main><h1>DriftSched report</h1><p>{_text(lead)}</p>"
        f"{tables}{sections}"
        f"<footer>Figures are counterparts of those in arXiv 2606.02982, numbered alike.</footer></main>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    """Hostile text, cleaned and escaped."""
    return escape(_long(str(value)))


def _long(text: str) -> str:
    """As ``plain``, without its limit, line by line."""
    return "\n".join("".join(map(plain, line)) for line in text.split("\n"))


def _section(picture: ReportFigure, runs: dict[str, RunFolder]) -> str:
    commands = "\n".join(dict.fromkeys(reproduce(runs[name]) for name in picture.runs))
    sources = ", ".join(picture.runs)
    return (
        f"<section><h2>{_text(picture.title)}</h2><figure>{picture.svg()}"
        f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
        f"<details><summary>Runs that it is drawn from, and how to reproduce it</summary>"
        f"<p>{_text(sources)}</p><pre>{_text(commands)}</pre></details></section>"
    )


def reproduce(run: RunFolder) -> str:
    """The command that made this run."""
    words = run.document.get("invocation")
    if not (words and isinstance(words, list)):
        return f"# {run.name!a}: its run.json does not say how"
    option = "--record" if words[0] in ("live", "serve") else "--out"
    place = "DIR" if words[0] == "bench" else run.name  # a bench makes many
    return shlex.join(["driftsched", *map(str, words), option, place])


def _number(*path: str, scale: float = 1.0) -> Callable[[RunFolder], Any]:
    def read(run: RunFolder) -> Any:
        value = run.number(*path)
        return None if value is None else value * scale

    return read


def _word(key: str) -> Callable[[RunFolder], Any]:
    return lambda run: str(run.document.get(key, ""))


_RUN_COLUMNS: dict[str, Callable[[RunFolder], Any]] = {
    "run": lambda run: run.name,
    "policy": lambda run: run.policy,
    "dispatch": _word("dispatch"),
    "counter": _word("counter"),
    "calibrated": lambda run: "yes" if run.calibrated else "no",
    "seed": _number("seed"),
    "finished": _number("requests", "finished"),
    "tokens/s": _number("tokens", "output_per_s"),
    "e2e p50 s": _number("latency_s", "all", "e2e", "p50"),
    "e2e p99 s": _number("latency_s", "all", "e2e", "p99"),
    "ttft p50 s": _number("latency_s", "all", "ttft", "p50"),
    "mae": _number("estimate", "mae"),
    "rmse": _number("estimate", "rmse"),
    "class right %": _number("estimate", "class_accuracy", scale=100.0),
    "fairness": _number("fairness", "jain"),
    "SLOs met %": _number("goodput", "slo_share", scale=100.0),
}

_TENANT_COLUMNS = {
    "finished": ("requests", "finished"),
    "tokens": ("tokens", "output"),
    "e2e p50 s": ("e2e", "p50"),
    "e2e p99 s": ("e2e", "p99"),
    "ttft p50 s": ("ttft", "p50"),
    "ttft p99 s": ("ttft", "p99"),
}


def _table(columns: dict[str, Callable[[RunFolder], Any]], runs: Sequence[RunFolder]) -> str:
    return _html_table(list(columns), [[read(run) for read in columns.values()] for run in runs])


def _tenants(runs: Sequence[RunFolder]) -> str:
    lines = []
    for run in runs:
        for name in run.names("latency_s", "tenants"):
            cells = [run.number("latency_s", "tenants", name, *path) for path in _TENANT_COLUMNS.values()]
            lines.append([run.name, name, *cells])
    return _html_table(["run", "tenant", *_TENANT_COLUMNS], lines)


def _html_table(names: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    columns = [any(isinstance(value, int | float) for value in column) for column in zip(*lines, strict=True)]
    head = "".join(
        f"<th scope=col tabindex=0{' class=n' if number else ''}>{escape(name)}</th>"
        for name, number in zip(names, columns or [False] * len(names), strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td class=n>–</td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
        return f'<td class=n data-v="{value!r}">{shown}</td>'
    return f"<td>{_text(value)}</td>"


_CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5a6370;--line:#d5dae1;--back:#fff;--row:#f3f5f8}
@media(prefers-color-scheme:dark){:root{--ink:#dfe4ea;--dim:#98a2b0;--line:#343b45;--back:#14171b;--row:#1c2026}}
body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
figure{margin:0}figure svg{width:100%;height:auto;color:var(--ink)}
figcaption,footer,summary{color:var(--dim);font-size:.9rem}
.wide{overflow:auto;max-height:28rem;border:1px solid var(--line);border-radius:6px}
@media print{.wide{overflow:visible;max-height:none}}
table{border-collapse:collapse;width:100%;font-size:.82rem}
th{position:sticky;top:0;background:var(--row);cursor:pointer;text-align:left;white-space:nowrap}th.n{text-align:right}
th[aria-sort=ascending]::after{content:" ▲"}th[aria-sort=descending]::after{content:" ▼"}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td{white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums}
pre{overflow:auto;background:var(--row);padding:.6rem;border-radius:6px;font-size:.8rem}
"""

_SCRIPT = """
document.querySelectorAll("th").forEach(th=>{
  const sort=()=>{
    const body=th.closest("table").tBodies[0],at=th.cellIndex,up=th.getAttribute("aria-sort")!=="ascending";
    const key=row=>{const c=row.cells[at];return c.dataset.v===undefined?c.textContent:+c.dataset.v};
    const order=(a,b)=>{const x=key(a),y=key(b);
      return typeof x==="number"&&typeof y==="number"?x-y:String(x).localeCompare(String(y))};
    const rows=[...body.rows].sort((a,b)=>up?order(a,b):order(b,a));
    th.parentNode.querySelectorAll("th").forEach(o=>o.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort",up?"ascending":"descending");
    body.append(...rows);
  };
  th.addEventListener("click",sort);
  th.addEventListener("keydown",e=>{if(e.key==="Enter"||e.key===" "){e.preventDefault();sort()}});
});
"""
