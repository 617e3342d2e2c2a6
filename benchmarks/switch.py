"""A dense model that becomes LLP against one that was LLP from the start: chains of runs, then a report.

    python benchmarks/switch.py results/switch --text FOLDER --runs FOLDER    # what is missing, then the report
    python benchmarks/switch.py results/switch                                # the report, from the records alone

The first folder holds `spec.yaml`. `--text` has the layout of PG-19; `--runs` takes the runs, some 200 MB.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy import stats

from llp.atomic_files import write_whole
from llp.comparison.spec import merged
from llp.comparison.statistics import holm

Settings = dict[str, Any]


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    spec = yaml.safe_load((options.folder / "spec.yaml").read_text(encoding="utf-8"))
    path = options.folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(record["chain"], record["seed"]) for record in records}
    for seed in spec["seeds"] if options.runs else []:
        for chain in spec["chains"]:
            if (chain, seed) not in done:
                records.append(run_chain(spec, chain, seed, options.text, options.runs.resolve()))
                write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
    write_whole(options.folder / "report.md", report(spec, pd.DataFrame(records)))


def run_chain(spec: Settings, chain: str, seed: int, text: Path, runs: Path) -> Settings:
    """Train the models of a chain, each from the weights of the one before, and test the last; returns its record."""
    names, before = spec["chains"][chain], None
    for stage, name in enumerate(names, 1):
        run = "-then-".join(names[:stage]) + f"-s{seed}"  # chains that begin alike share their first run
        place = runs / "lightning_logs" / run
        settings = merged(
            spec["shared"],
            {"model": spec["models"][name], "seed_everything": seed},
            {"data": {"init_args": {"path": str(text), "seed": seed + 100 * (stage - 1)}}},
            {"trainer": {"default_root_dir": str(runs)}},
        )
        write_whole(runs / f"{run}.yaml", yaml.safe_dump(settings))
        start = [] if before is None else ["--init_from", before]  # a checkpoint of its own goes before
        llp("fit", "--config", str(runs / f"{run}.yaml"), "--name", run, "--ckpt_path", "auto", *start)
        before = str(place / "checkpoints/last.ckpt")
    llp("test", "--ckpt_path", before)
    content, tested = (json.loads((place / file).read_text(encoding="utf-8")) for file in ("run.json", "test.json"))
    row = {name: tested["rows"][0][name] for name in ("bits_per_byte", "nats", "tokens", "bytes")}
    curve = [[one["step"], one["bits_per_byte"]] for one in content["validations"]]
    return {"chain": chain, "seed": seed, **row, "curve": curve, "commit": content["commit"]}


def llp(*arguments: str) -> None:
    """Run a command of the project on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "llp", *arguments], check=True, env=environment)


def report(spec: Settings, records: pd.DataFrame) -> str:
    """Means of the chains, and the contrasts that were named, as Markdown."""
    scores = records.pivot(index="seed", columns="chain", values="bits_per_byte")
    lines = ["# A dense model that becomes LLP, and LLP from the start", "", spec["question"].strip(), ""]
    lines += [
        f"Bits per byte of the test books, {len(scores)} seeds.",
        "",
        "| chain | mean | sd |",
        "| --- | --- | --- |",
    ]
    lines += [f"| {chain} | {scores[chain].mean():.4f} | {scores[chain].std():.4f} |" for chain in spec["chains"]]
    head = "| first | second | first - second | 95 % interval, paired | not paired (Welch) | p, Holm |"
    lines += ["", head, "| --- | --- | --- | --- | --- | --- |"]
    tests = [stats.ttest_rel(scores[first], scores[second]) for first, second in spec["contrasts"]]
    corrected = holm([float(test.pvalue) for test in tests])
    for (first, second), test, p in zip(spec["contrasts"], tests, corrected, strict=True):
        welch = stats.ttest_ind(scores[first], scores[second], equal_var=False)
        bounds = [one.confidence_interval(0.95) for one in (test, welch)]
        mean = (scores[first] - scores[second]).mean()
        cells = [first, second, f"{mean:+.4f}", *(f"{one.low:+.4f} .. {one.high:+.4f}" for one in bounds), f"{p:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
