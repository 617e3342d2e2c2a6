"""A campaign of faults on one machine: processes killed and stopped, disks filled, files damaged, clocks moved.

Each injection starts from the same small run and ends in one of the outcomes of the table that is printed. Not part of
the default tests, since 500 of them take a quarter of an hour of one core:

    python tests/faults.py [--seed 0] [--injections 500] [--kinds bit-flip truncation] [--workers 1]
    python tests/faults.py --numbers 34 153     # these again
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from helpers.faults import KINDS, Injection, inject, kind_of, may_mount, table
from helpers.undisturbed import PARTS, Undisturbed


def main() -> int:
    """Inject, print the table and what failed; returns the exit status."""
    parser = argparse.ArgumentParser(description="Inject faults, and say what came of them.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--numbers", type=int, nargs="+", help="these alone, to repeat what has failed")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=1, help="how many at a time")
    parser.add_argument("--quick", action="store_true", help="runs of one process alone, and no comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run replaces what came after its checkpoint
    gc.freeze()  # what forks share stays shared
    parts = () if options.quick else PARTS
    available = {None: True, "pair": "pair" in parts, "mount": may_mount()}
    kinds = [kind for kind in options.kinds if available[KINDS[kind].needs]]
    for kind in set(options.kinds) - set(kinds):
        print(f"left out: {kind}, which needs {KINDS[kind].needs}", flush=True)
    numbers = options.numbers or range(options.injections)
    chosen = [number for number in numbers if kind_of(options.seed, number) in kinds]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        undisturbed = Undisturbed(Path(temporary), parts)
        injections = _inject_all(undisturbed, options.seed, chosen, options.workers)
    for one in injections:
        if one.is_failure:
            print(f"\n{one.number}: {one.kind}, {one.fault}\n{one.evidence}")
    failures = sum(one.is_failure for one in injections)
    print(f"\n{table(injections)}\n")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = f"{time.monotonic() - started:,.0f} s, {used.ru_utime + used.ru_stime:,.0f} s of CPU time"
    print(f"{len(injections)} injections in {seconds}: {failures} failures", flush=True)
    return 1 if failures or len(injections) < len(chosen) else 0


def _inject_all(undisturbed: Undisturbed, seed: int, numbers: list[int], workers: int) -> list[Injection]:
    """All injections, dealt out to forks of this process, which itself starts no thread."""
    paths = [undisturbed.root / f"worker-{worker}.jsonl" for worker in range(workers)]
    children = []
    for worker, path in enumerate(paths):
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                _work(undisturbed, seed, numbers[worker::workers], path)
                status = 0
            os._exit(status)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            print("a worker has failed", file=sys.stderr)
    lines = [line for path in paths if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted((Injection(**json.loads(line)) for line in lines), key=lambda one: one.number)


def _work(undisturbed: Undisturbed, seed: int, numbers: list[int], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number in numbers:
            one = inject(undisturbed, seed, number)
            print(json.dumps(asdict(one)), file=stream, flush=True)
            print(f"{number}: {one.kind}: {one.outcome} ({one.fault})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
