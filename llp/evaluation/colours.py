"""The colour that each architecture has in every plot."""

COLOURS = {
    "Transformer": "#5c636a",
    "LLP": "#1c7ed6",
    "SlidingWindow": "#e0a800",
    "ShiftedSegments": "#7f5539",
    "PerceiverAR": "#e8590c",
    "DoubleAttention": "#2f9e44",
    "SplitAttention": "#9c36b5",
    "CompressedAttention": "#c2255c",
}


def lighter(colour: str) -> str:
    """The colour `#rrggbb`, mixed half and half with white."""
    red, green, blue = bytes.fromhex(colour[1:])
    return f"#{(red + 255) // 2:02x}{(green + 255) // 2:02x}{(blue + 255) // 2:02x}"
