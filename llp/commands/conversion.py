"""`llp export` and `llp consolidate`: a trained model in another form."""

from pathlib import Path
from typing import Literal

from llp.atomic_files import run_folder
from llp.checkpoints import consolidation
from llp.export.model_folder import write_folder
from llp.loading import chosen_checkpoint


def export(
    ckpt_path: str,
    name: str | None = None,
    output: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    plain: bool = False,
) -> None:
    """Write a trained model as a folder that transformers can open, and print what was written.

    Args:
        ckpt_path: A checkpoint or a run's folder; or best, last or auto, with --name.
        name: The name of the run in lightning_logs/.
        output: The new folder; by default export/ in the run's folder.
        dtype: The data type of the weights.
        plain: For a pretrained model: write a stock model with dense attention, without the attention pattern.
    """
    path = chosen_checkpoint(Path(ckpt_path))
    folder = run_folder(path) / "export" if output is None else output.expanduser()
    print(write_folder(path, folder, dtype, plain))


def consolidate(folder: Path) -> None:
    """Turn a sharded checkpoint into a single file.

    Args:
        folder: The folder of the checkpoint.
    """
    print(f"Written to {consolidation.consolidate(folder)}")
