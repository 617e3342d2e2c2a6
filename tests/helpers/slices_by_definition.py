"""The slices of a loss, token by token as they are defined; shares no code with `llp`."""


def slices_by_definition(documents, losses, window_len, stride, segment_len=None):
    """What `slices.json` holds. A document is its start token and its tokens; a loss that is None was not scored."""
    by_context, by_distance, by_segment, other = {}, {}, {}, [0, 0.0]
    for document, nats in zip(documents, losses, strict=True):
        for t in range(1, len(document)):  # the place of a target; the start token has place 0
            if nats[t - 1] is None:
                continue
            start = max(0, ((t - 1) // stride + 1) * stride - window_len)
            count(by_context, t - start, nats[t - 1])
            bigram = (document[t - 1], document[t])
            earlier = [s for s in range(start + 1, t) if (document[s - 1], document[s]) == bigram]
            if not earlier:
                other = [other[0] + 1, other[1] + nats[t - 1]]
                continue
            count(by_distance, t - earlier[-1], nats[t - 1])
            if segment_len is not None:
                query, key = t - 1 - start, earlier[-1] - start
                count(by_segment, query // segment_len - key // segment_len, nats[t - 1])
    width = 1
    while width * 32 < window_len:
        width += 1
    positions = [(first, min(first + width - 1, window_len)) for first in range(1, window_len + 1, width)]
    powers = [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128)]
    assert window_len <= 128
    return {
        "position": binned(by_context, positions),
        "recall": binned(by_distance, powers),
        "other": {"tokens": other[0], "nats": other[1]},
        "segment_len": segment_len,
        "recall_by_segment": None
        if segment_len is None
        else [{"segments": k, "tokens": by_segment[k][0], "nats": by_segment[k][1]} for k in sorted(by_segment)],
    }


def count(sums, key, nats):
    n, total = sums.get(key, (0, 0.0))
    sums[key] = n + 1, total + nats


def binned(sums, bounds):
    bins = []
    for first, last in bounds:
        inside = [sums[key] for key in sums if first <= key <= last]
        if inside:
            n, nats = (sum(column) for column in zip(*inside, strict=True))
            bins.append({"first": first, "last": last, "tokens": n, "nats": nats})
    return bins
