"""What a comparison is going to take, before anything starts."""

from llp.comparison.plan import Plan, PlannedRun
from llp.evaluation.tables import aligned

_BYTES_PER_PARAMETER = 2 * 3 * 4  # best.ckpt and last.ckpt, each weights and AdamW's two moments in float32


def preview(plan: Plan, rate: float) -> str:
    """All runs as a table, and the sums. Runs at a rate that is still to be chosen count with the middle one.

    Args:
        plan: With `choose_all`.
        rate: FLOP/s that are assumed where no step has been timed.
    """
    head = ["run", "state", "tested", "learning rate", "steps", "parameters", "pairs/window", "FLOPs", "seconds", "MB"]
    table, total_flops, total_seconds, total_bytes = [head], 0, 0.0, 0
    runs = plan.runs()
    for run in runs:
        flops, seconds, n_bytes = _cost(plan, run, rate)
        done = plan.is_done(run)
        state = "done" if done else "failed" if run.name in plan.failed else "to do"
        if not done:
            total_flops, total_seconds, total_bytes = (
                total_flops + flops,
                total_seconds + seconds,
                total_bytes + n_bytes,
            )
        contestant = plan.contestants[run.arm]
        table.append(
            [run.name, state, "yes" if run.is_tested else "no", f"{run.learning_rate:g}", f"{run.steps:,}",
             f"{contestant.parameters:,}", f"{contestant.pairs:,.0f}", f"{flops:.2e}", f"{seconds:,.0f}",
             f"{n_bytes / 1e6:,.0f}"]
        )  # fmt: skip
    to_do = sum(not plan.is_done(run) for run in runs)
    source = "as timed" if plan.timing is not None else f"at {rate:.2e} FLOP/s, an assumption"
    lines = aligned(table, n_left=2)
    lines += [
        f"{to_do} of {len(runs)} runs to do: {total_flops:.2e} FLOPs of training,",
        f"{total_seconds / 3600:,.2f} device hours ({source}), {total_bytes / 1e9:,.2f} GB of checkpoints.",
        "Validation and test come on top.",
        "Where a learning rate is still to be chosen, the middle one stands for it.",
    ]
    return "\n".join(lines)


def _cost(plan: Plan, run: PlannedRun, rate: float) -> tuple[int, float, int]:
    """FLOPs, seconds and bytes on disk of a run."""
    contestant = plan.contestants[run.arm]
    flops = run.steps * contestant.windows_per_step * contestant.flops
    step = {} if plan.timing is None else plan.timing.seconds_per_step
    arm = run.arm.partition(".")[0]
    seconds = run.steps * step[arm] if arm in step else flops / rate
    return flops, seconds, _BYTES_PER_PARAMETER * contestant.parameters
