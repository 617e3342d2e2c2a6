"""The report of a comparison: `report.md`, tables as `.csv` and pictures, made of its records alone."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llp.atomic_files import whole_file
from llp.comparison import pictures, reach, sections
from llp.comparison.checks import check
from llp.comparison.figures import contrast_list, figure_of, run_list, summary, unit_of
from llp.comparison.judgement import exploratory, judge_all, primary
from llp.comparison.opening import opening
from llp.comparison.study import Study


class Report(NamedTuple):
    """All that the files of a report hold."""

    text: str
    summary: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    pictures: dict[str, Any]
    """By the names of their files."""


def write_report(study: Study, folder: Path) -> list[Path]:
    """Write a study's report; the same records give the same bytes.

    What isn't there yet is named in it; a study without any record has a report as well.

    Args:
        study: What was planned, and the records that there are.
        folder: Where the files go. Files of an older report are replaced.

    Returns:
        The files: `report.md`, `report.csv` (a line for each contestant and budget), `contrasts.csv` (a line for each
        difference), `runs.csv` (a line for each run, with the commands that repeat it) and the pictures.
    """
    report = compose(study)
    return [
        _write(folder / "report.md", report.text),
        _write(folder / "report.csv", _csv(report.summary)),
        _write(folder / "contrasts.csv", _csv(report.contrasts)),
        _write(folder / "runs.csv", _csv(report.runs)),
        *(pictures.save(figure, folder / name) for name, figure in report.pictures.items()),
    ]


def compose(study: Study) -> Report:
    """Make a study's report without writing it."""
    checks = check(study)
    judged, unit = judge_all(study, checks), unit_of(study)
    named, others = primary(study, judged), exploratory(study, judged)
    rows, runs = summary(study, judged, unit), run_list(study)
    drawn = dict(pictures.draw_all(study, named, others, unit))
    ablations = {name: _ablation_picture(study, name, unit) for name in study.ablations}
    drawn |= {pictures.ablation_file(name): figure for name, figure in ablations.items() if figure is not None}
    lines = [
        *opening(study, checks, named, unit, drawn),
        *sections.budget_tables(study, rows, unit),
        *sections.contrast_tables(named, others, unit),
        *sections.costs(study, drawn),
        *reach.section(study, drawn),
        *sections.learning_rates(study, unit, drawn),
        *sections.ablation_tables(study, checks, unit, drawn),
        *sections.scoring(study),
        *sections.runs(runs),
    ]
    return Report("\n".join(lines) + "\n", rows, contrast_list(named, others), runs, drawn)


def _write(path: Path, text: str) -> Path:
    with whole_file(path, keeps_older=False) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        # Eight digits: what comes after them differs between machines.
        writer.writerow(f"{value:.8g}" if isinstance(value, float) else value for value in row.values())
    return text.getvalue()


def _ablation_picture(study: Study, name: str, unit: str) -> Any | None:
    points = [(value, [figure_of(record) for record in records]) for value, records in study.ablations[name]]
    return pictures.ablation(name, points, unit, sections.own_value(study, name))
