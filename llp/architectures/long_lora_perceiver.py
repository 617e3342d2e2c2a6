"""LLP, the Long LoRA Perceiver (arXiv 2412.06106; called ECP in its second version)."""

from typing import Any

from llp.decoder.patterns import CausalAttention, Layer, SegmentAttention
from llp.errors import require
from llp.language_model import LanguageModel


class LLP(LanguageModel):
    """Each segment attends to itself causally and to the whole segment before it; all positions have a loss.

    A layer costs O(n m) for n positions in segments of m. Over L layers, a position reads back to the start of the
    segment L segments before its own. If some layers are dense, it reads back to the start of the window.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        segment_len: m, the length of a segment. Sequences of any length are accepted, not only multiples of it.
        look_back: Number of previous segments that each segment attends to. With 0, each segment attends only to
            itself.
        dense_every: Make every k-th layer dense, counted backwards from the last layer. A dense layer attends to all
            earlier positions. By default no layer is dense.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self,
        vocab_size: int,
        segment_len: int = 256,
        look_back: int = 1,
        dense_every: int | None = None,
        **kwargs: Any,
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(segment_len >= 1, "segment_len", segment_len, "set it to 1 or more")
        require(look_back >= 0, "look_back", look_back, "set it to 0 or more")
        remedy = "set it to 1 or more, or to null for no dense layer"
        require(dense_every is None or dense_every >= 1, "dense_every", dense_every, remedy)
        self.segment_len, self.look_back, self.dense_every = segment_len, look_back, dense_every

    def layers(self) -> list[Layer]:
        local = Layer(SegmentAttention(self.segment_len, self.look_back))
        if self.dense_every is None:
            return [local] * self.n_layers
        dense_layers = range(self.n_layers)[:: -self.dense_every]
        return [Layer(CausalAttention()) if number in dense_layers else local for number in range(self.n_layers)]
