"""A language model with its tokenizer and the windows in which a text is scored."""

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from datamodules.tokenizers import Tokenizer


@dataclass
class TextModel:
    """A language model that reads text.

    Attributes:
        module: The language model.
        tokenizer: The tokenizer that it was trained with.
        start_token: The token that a document begins with.
        window: Length and stride of the windows in which a text is scored and continued.
    """

    module: TrainingModule
    tokenizer: "Tokenizer"
    start_token: int
    window: tuple[int, int]

    @property
    def device(self) -> torch.device:
        return self.module.device

    def tokens(self, text: str) -> Tensor:
        """The start token and the tokens of a text: (1, N + 1) int64, what the module's `forward` takes."""
        lines = list(StringIO(text, newline="\n"))  # as in the data modules, only newlines end a line
        encoded = self.tokenizer.encode(lines).tolist()
        return torch.tensor([[self.start_token, *encoded]], device=self.device)
