"""The windows that score a text for the architectures with a finite reach."""

from llp.errors import require


def windows_with_reach(reach: int, unit: int, window_len: int | None, stride: int | None) -> tuple[int, int]:
    """Length and stride of scoring windows; by default they hold the reach, so that scores are those of a single pass.

    Args:
        reach: How many tokens before its own a position can depend on, at most.
        unit: Where windows may begin and end: at multiples of this, or anywhere if it is 1.
        window_len: A length asked for; None: reach and stride together.
        stride: A stride asked for; None: what the window leaves beside the reach, or half a window if it is no longer
            than the reach; of windows without a length the reach.
    """
    if stride is None:
        if window_len is None:
            stride = reach
        elif window_len > reach:
            stride = window_len - reach
        else:
            stride = window_len // 2
        stride = max(unit, stride // unit * unit)
    return reach + stride if window_len is None else window_len, stride


def require_aligned(window_len: int | None, stride: int | None, segment_len: int) -> None:
    """Windows must begin where a segment begins.

    Raises:
        SettingError: If a length or a stride that is asked for is not a multiple of `segment_len`.
    """
    for setting, value in (("scoring_window_len", window_len), ("scoring_stride", stride)):
        if value is not None:
            aligned = value >= 1 and value % segment_len == 0
            require(aligned, setting, value, f"set it to a multiple of segment_len = {segment_len}")
