"""What every benchmark shares: text to tokens on disk, once per machine, and from there to windows."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.documents import Text
from datamodules.language_data import LanguageDataModule
from datamodules.loaders import ScoringLoader, TrainingLoader
from datamodules.preparation import Preparation, token_dtype
from datamodules.prepared_folder import check_file, read_about, unusable
from datamodules.token_files import TokenFile
from datamodules.tokenizers import SentencePiece, Tokenizer
from datamodules.windows import TrainingOrder, share_of_rank
from llp.errors import require
from llp.scoring.windows import JOINED, in_one_pass, scoring_batches

_FORMAT = 3  # of the prepared folder; another one makes every cache anew


class TextDataModule(LanguageDataModule):
    """Language-model training windows and scoring windows over a benchmark's text.

    A benchmark says where its text lies (`source`, `texts`) and how its words are counted.

    Args:
        path: Folder with the benchmark's files in their official layout; without it the Hub is the source.
        cache_dir: Where prepared tokens are kept, one folder for each text and tokenizer.
        tokenizer: Trained on the training split when the text is prepared; SentencePiece unless given.
        window_len: n, the positions of a training window, which reads n + 1 tokens.
        train_stride: Tokens between the starts of training windows; a window's length unless given.
        burn_in: b, tokens before a training window that are read and have no loss, none of them from before the
            document in which the window starts. With `reach` they are all that the model can depend on: a window
            inside of a document then trains as in one pass over all of it. An epoch goes through the text once.
        batch_size: Training windows in a batch of one device.
        scoring_window_len: Positions of a scoring window; the architecture's own choice unless given.
        scoring_stride: Positions that a scoring window scores; the architecture's own choice unless given.
        check_training_tokens: Whether the training tokens are compared with their digest before a run, too, which
            reads the whole file: a second or less a gigabyte. Those of a split that is scored always are.
        seed: Seed of the order of training windows. On the command line it is `seed_everything`.

    Raises:
        SettingError: If a value can't be used.
    """

    splits: tuple[str, ...] = ("train", "validation", "test")
    word_count = "whitespace-separated words"
    """What `count_words` counts."""

    changeable_settings = frozenset({"batch_size", "scoring_window_len", "scoring_stride", "check_training_tokens"})

    def __init__(
        self,
        path: str | None = None,
        cache_dir: str = "~/.cache/llp",
        tokenizer: Tokenizer | None = None,
        window_len: int = 2048,
        train_stride: int | None = None,
        burn_in: int | Literal["reach"] = 0,
        batch_size: int = 8,
        scoring_window_len: int | None = None,
        scoring_stride: int | None = None,
        check_training_tokens: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(window_len, batch_size, seed)
        self.save_hyperparameters(ignore=["tokenizer", "path", "cache_dir"])
        is_stride = train_stride is None or train_stride >= 1
        require(is_stride, "data.init_args.train_stride", train_stride, "set it to 1 or more")
        self.path = None if path is None else Path(path).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.tokenizer = tokenizer or SentencePiece()
        self.train_stride, self.burn_in = train_stride or window_len, burn_in
        self.scoring_window_len, self.scoring_stride = scoring_window_len, scoring_stride
        self.check_training_tokens = check_training_tokens

    @property
    def vocab_size(self) -> int:
        """Number of tokens, known before anything is prepared."""
        return self.tokenizer.vocab_size

    # The benchmark

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """What identifies the text without reading it: names, sizes and dates of files, or a Hub revision.

        Raises:
            SettingError: If a part of the text is missing.
        """

    @abstractmethod
    def texts(self, split: str) -> Iterator[Text]:
        """The documents of a split, read when they are iterated over."""

    def splits_note(self) -> str | None:
        """What became which split, in one line, where the user could not know; None: the benchmark itself says."""
        return None

    def n_bytes(self, split: str) -> int | None:
        """Size of a split for the progress bar; None: not known."""
        return None

    def official_words(self, split: str) -> int | None:
        """The benchmark's own count of a split's words, if the split is complete; None: the text's are counted."""
        return None

    def count_words(self, line: str) -> int:
        """Words of a line, as the benchmark counts them."""
        return len(line.split())

    def word_note(self, split: str) -> str:
        """What the words of a split are, for the report."""
        return self.word_count

    def start_token(self) -> int:
        """The token that a document begins with: context for its first token, never scored."""
        return self.tokenizer.start_token

    # Preparing

    def prepared_folder(self) -> Path:
        """Where this text lies encoded by this tokenizer.

        A tokenizer from a checkpoint finds what its own run has prepared. On another text it has a folder under its
        fingerprint: under its settings, it would be taken for one that was trained on that text.
        """
        made_with = self.tokenizer.made_with
        if made_with is None:
            return self._folder(self.tokenizer.settings())
        folder = self._folder(made_with)
        if folder.exists() and read_about(folder)["tokenizer_fingerprint"] == self.tokenizer.fingerprint:
            return folder
        return self._folder({"fingerprint": self.tokenizer.fingerprint})

    def _folder(self, tokenizer: dict[str, Any]) -> Path:
        key = {"format": _FORMAT, "source": self.source(), "tokenizer": tokenizer}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.cache_dir / f"{self.name}-{digest[:16]}"

    def prepare_data(self) -> None:
        """Train the tokenizer and encode every split, once. The prepared folder appears whole or not at all."""
        if self.trainer is not None:
            # A model that these windows don't fit stops the run before the long work.
            self._scoring_window()
            self._burn_in_len()
        Preparation(self).run(self.prepared_folder())

    def setup(self, stage: str) -> None:
        """Open what was prepared."""
        folder = self.prepared_folder()
        self.about = read_about(folder)
        self.tokenizer.load(folder)
        if self.tokenizer.fingerprint != self.about["tokenizer_fingerprint"]:
            raise unusable(folder / self.tokenizer.file_name)
        dtype = token_dtype(self.vocab_size)
        self.files = {split: TokenFile(folder, split, dtype) for split in self.splits}
        n_tokens = len(self.files["train"].tokens)
        for setting, value in (("window_len", self.window_len), ("train_stride", self.train_stride)):
            require(
                value < n_tokens,
                f"data.init_args.{setting}",
                value,
                f"the training split has {n_tokens} tokens; shorten it",
            )

    def checked_file(self, split: str) -> TokenFile:
        """A split's tokens, for figures: what is on disk is what was prepared. A file is read for it once per process.

        Raises:
            SettingError: If a file has changed.
        """
        file = self.files[split]
        check_file(file.path, self.about)
        check_file(file.index, self.about)
        return file

    # Training

    def train_dataloader(self) -> TrainingLoader:
        """Batches of `(inputs, targets)` in the training order, from where the run stands."""
        trainer = self.trainer
        assert trainer is not None
        file = self.checked_file("train") if self.check_training_tokens else self.files["train"]
        order = self._training_order()
        samples_per_batch = self.batch_size * trainer.world_size
        # One pass of the trainer over this loader is the whole run, where its length is known: the progress bar
        # then shows how much is left. The epochs of the data are inside the order.
        n_batches = (
            trainer.max_steps * trainer.accumulate_grad_batches
            if trainer.max_steps > 0
            else max(1, order.windows_per_epoch // samples_per_batch)
        )
        burn_in = self._burn_in_len()
        n_read, n_tokens = burn_in + self.window_len, len(file.tokens)
        remedy = (
            f"with window_len = {self.window_len} a window reads {n_read} tokens, and the training split has "
            f"{n_tokens}; shorten one of the two"
        )
        require(n_read < n_tokens, "data.init_args.burn_in", self.burn_in, remedy)
        return TrainingLoader(
            file.tokens,
            file.starts,
            order,
            self.counter,
            self.window_len,
            burn_in,
            self.batch_size,
            n_batches,
            trainer.global_rank,
            trainer.world_size,
        )

    def _training_order(self) -> TrainingOrder:
        # With burn-in a window's context doesn't end where it begins, and nothing is gained by drawing that place.
        is_circle = self.burn_in == 0
        return TrainingOrder(len(self.files["train"].tokens), self.train_stride, self.seed, is_circle)

    def _burn_in_len(self) -> int:
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        return model.geometry.burn_in_len(self.burn_in)

    def sample_places(self, n_samples: int) -> list[str]:
        """Where the last samples taken lie in the training text, in the order of their numbers."""
        file, order = self.files["train"], self._training_order()
        places = []
        for sample in range(self.counter.samples - n_samples, self.counter.samples):
            start = order.start(sample)
            document = file.document_at(start)
            within = start - document.start
            places.append(f"sample {sample:,}: {self.window_len:,} tokens from token {within:,} of {document.name}")
        return places

    # Scoring

    def val_dataloader(self) -> ScoringLoader:
        """The validation split in scoring windows."""
        return self._scoring_loader("validation", "limit_val_batches")

    def test_dataloader(self) -> ScoringLoader:
        """The test split in scoring windows."""
        return self._scoring_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> ScoringLoader:
        """The test split in scoring windows."""
        return self._scoring_loader("test", "limit_predict_batches")

    def _scoring_window(self) -> tuple[int, int]:
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        return model.geometry.scoring_window(self.window_len, self.scoring_window_len, self.scoring_stride)

    def _scoring_loader(self, split: str, limit: str) -> ScoringLoader:
        trainer = self.trainer
        assert trainer is not None
        file = self.checked_file(split)
        window_len, stride = self._scoring_window()
        # As many positions at a time as in training: scoring windows may be much longer.
        batch_size = max(1, self.batch_size * self.window_len // window_len)
        batches = scoring_batches([document.tokens for document in file.documents], window_len, stride, batch_size)
        protocol = {
            "data_fingerprint": self.about["data_fingerprint"],
            "tokenizer_fingerprint": self.about["tokenizer_fingerprint"],
            "window_len": window_len,
            "stride": stride,
            "word_count": self.word_note(split),
            "official_words": self.official_words(split),
        }
        scored = self._limited(batches, limit)
        model: Any = trainer.lightning_module
        if model.geometry.scores_as_one_pass(window_len, stride):
            # Joined alike whatever a batch holds, so that figures don't depend on it in their last digits.
            longest = window_len + JOINED * stride
            scored = in_one_pass(scored, longest, self.batch_size * self.window_len)
        share = share_of_rank(scored, trainer.global_rank, trainer.world_size)
        return ScoringLoader(file, share, split, protocol, self.unigram_nats)

    def unigram_nats(self, split: str) -> list[float]:
        """Loss of each document of a split under the training text's token frequencies, with add-one smoothing."""
        counts = self.checked_file("train").counts(self.vocab_size) + 1
        nats = np.log(counts.sum()) - np.log(counts)  # (vocab_size,)
        file = self.checked_file(split)
        return [
            float(np.bincount(file.text_of(document), minlength=self.vocab_size) @ nats) for document in file.documents
        ]
