"""A campaign of faults on one machine: processes killed, disks filled, files damaged.

Each injection starts from the same small run, does one thing to it, and compares what comes of it with the run to which
nothing happened (docs/faults.md). 500 of them take a quarter of an hour of one core:

    python tests/campaigns/faults.py [--injections 500] [--seed 0] [--kinds kill damage]
    python tests/campaigns/faults.py --numbers 34 153     # these again
"""

import argparse
import gc
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from campaigns.forked import import_all
from campaigns.injections import KINDS, Injection, inject, kind_of, may_mount
from campaigns.undisturbed import Undisturbed


def main() -> int:
    """Inject, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--numbers", type=int, nargs="+", help="these alone, to repeat what has failed")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="runs of one process alone, and no comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run replaces what came after its checkpoint
    import_all()
    gc.freeze()  # what forks share stays shared
    kinds = {kind for kind in options.kinds if KINDS[kind].is_quick or not options.quick}
    if not may_mount():
        print("left out: disk-full, which needs the right to mount a file system", flush=True)
        kinds.discard("disk-full")
    injections: list[Injection] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        undisturbed = Undisturbed(Path(temporary), options.quick)
        for number in options.numbers or range(options.injections):
            if kind_of(options.seed, number) not in kinds:
                continue
            one = inject(undisturbed, options.seed, number)
            injections.append(one)
            print(f"{number}: {one.kind}: {one.outcome} ({one.fault})", flush=True)
            if one.is_failure:
                print(f"{one.evidence}\n", flush=True)
    print()
    for (kind, outcome), count in sorted(Counter((one.kind, one.outcome) for one in injections).items()):
        print(f"{count:6,}  {kind}: {outcome}")
    failures = sum(one.is_failure for one in injections)
    print(f"{len(injections)} injections: {failures} failures", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
