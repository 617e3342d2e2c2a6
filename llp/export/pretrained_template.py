"""A causal language model of transformers whose attention is set when it is loaded.

No module imports this one. `llp.export.modeling_file` joins it with the modules that it imports into one file.
"""

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from llp.export.layers import PATTERNS
from llp.hf.attention import set_attention


class WithAttention(PreTrainedModel):
    """Opens the model of the configuration's own class, and sets its attention."""

    @classmethod
    def from_pretrained(cls, *args: Any, config: Any = None, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers."""
        stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, info = stock.from_pretrained(*args, config=config, output_loading_info=True, **kwargs)
        own = config.llp_attention
        set_attention(model, PATTERNS[own["pattern"]](**own["arguments"]), own["keep_first"], own["layers"])
        return (model, info) if output_loading_info else model
