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
    """Write a trained model as a folder that transformers opens; say what is in it.

    Args:
        ckpt_path: A checkpoint or a run's folder; or best, last or auto, with --name.
        name: The run in lightning_logs/.
        output: The new folder; export/ in the run's folder unless given.
        dtype: The type of the numbers.
        plain: Of a pretrained model, write the weights alone, to be used with dense attention.
    """
    path = chosen_checkpoint(Path(ckpt_path))
    folder = run_folder(path) / "export" if output is None else output.expanduser()
    print(write_folder(path, folder, dtype, plain))


def consolidate(folder: Path) -> None:
    """Make one file of a sharded checkpoint.

    Args:
        folder: The checkpoint.
    """
    print(f"Written to {consolidation.consolidate(folder)}")
