from pathlib import Path

from llp.comparison.study import Study


def write_report(study: Study, folder: Path) -> list[Path]:
    return []
