"""The slices of a loss, token by token as they are defined; shares no code with `llp`."""

import math
from collections import defaultdict


def slices_by_definition(documents, losses, window_len, stride):
    """What `slices.json` holds. A document is its start token and its tokens; a loss that is None was not scored."""
    by_context, by_distance, other = defaultdict(list), defaultdict(list), []
    for document, nats in zip(documents, losses, strict=True):
        for t in range(1, len(document)):  # the place of a target; the start token has place 0
            if nats[t - 1] is None:
                continue
            start = max(0, ((t - 1) // stride + 1) * stride - window_len)
            by_context[t - start].append(nats[t - 1])
            bigram = (document[t - 1], document[t])
            earlier = [s for s in range(start + 1, t) if (document[s - 1], document[s]) == bigram]
            (by_distance[t - earlier[-1]] if earlier else other).append(nats[t - 1])
    width = 1
    while width * 32 < window_len:
        width += 1
    positions = [(first, min(first + width - 1, window_len)) for first in range(1, window_len + 1, width)]
    powers = [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128)]
    assert window_len <= 128
    return {
        "position": binned(by_context, positions),
        "recall": binned(by_distance, powers),
        "other": {"tokens": len(other), "nats": math.fsum(other)},
    }


def binned(nats, bounds):
    bins = []
    for first, last in bounds:
        inside = [one for key in nats if first <= key <= last for one in nats[key]]
        if inside:
            bins.append({"first": first, "last": last, "tokens": len(inside), "nats": math.fsum(inside)})
    return bins
