"""The base class of the benchmarks: text as tokens on disk, and training and scoring windows cut from them."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.base import LanguageDataModule
from datamodules.loaders import ScoringLoader, TextWindows, TrainingLoader, TrainingOrder, share_of_rank
from datamodules.preparation import Corpus, prepare
from datamodules.token_files import About, TokenFile, check_file, read_about, token_dtype
from datamodules.tokenizers import SentencePiece, Tokenizer
from llp.decoder.geometry import Geometry
from llp.errors import require
from llp.scoring.metric import TextProtocol
from llp.scoring.windows import JOINED, in_one_pass, scoring_batches

_FORMAT = 3  # of the prepared folder; a new number invalidates all earlier ones


class TextDataModule(LanguageDataModule, Corpus):
    """Training windows and scoring windows over the text of a benchmark.

    A subclass defines where the text is (`source`, `texts`) and how its words are counted.

    Args:
        path: Folder with the benchmark's files in their official layout. By default the text comes from the Hub.
        cache_dir: Folder for prepared tokens, with a subfolder for each text and tokenizer.
        tokenizer: The tokenizer, by default SentencePiece. It is trained on the training split when the text is
            prepared, unless it is a given one.
        window_len: n, the number of positions in a training window, which takes n + 1 tokens.
        train_stride: Distance in tokens between the starts of training windows; by default `window_len`.
        burn_in: b, the number of tokens that are read without a loss before a training window, none of them from before
            the document in which the window starts. `reach` stands for all tokens that the model can depend on; a
            window inside a document is then trained on as in one pass over the document. With burn-in, windows don't
            wrap around the end of the text.
        batch_size: Number of training windows per batch and device.
        scoring_window_len: Number of positions in a scoring window; by default determined by the architecture.
        scoring_stride: Number of positions that a window scores; by default determined by the architecture.
        check_training_tokens: Whether the digest of the training tokens is verified before a run, which takes up to a
            second per gigabyte. The tokens of a split that is scored are always verified.
        seed: Seed of the order of training windows. On the command line it is `seed_everything`.
        processes: Number of processes that prepare the text; by default one per core. The tokens don't depend on it.

    Raises:
        SettingError: If a value can't be used.
    """

    word_count = "whitespace-separated words"
    """What `count_words` counts."""

    changeable_settings = frozenset({"batch_size", "scoring_window_len", "scoring_stride", "check_training_tokens"})

    about: About
    """The contents of the prepared folder's `about.json`, after `setup`."""
    files: dict[str, TokenFile]
    """The tokens of each split, after `setup`."""

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
        processes: int | None = None,
    ) -> None:
        super().__init__(window_len, batch_size, seed)
        self.save_hyperparameters(ignore=["tokenizer", "path", "cache_dir", "processes"])
        is_stride = train_stride is None or train_stride >= 1
        require(is_stride, "data.init_args.train_stride", train_stride, "set it to 1 or more")
        require(processes is None or processes >= 1, "data.init_args.processes", processes, "set it to 1 or more")
        self.processes = processes
        self.path = None if path is None else Path(path).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.tokenizer = tokenizer or SentencePiece()
        self.vocab_size = self.tokenizer.vocab_size
        self.train_stride, self.burn_in = train_stride or window_len, burn_in
        self.scoring_window_len, self.scoring_stride = scoring_window_len, scoring_stride
        self.check_training_tokens = check_training_tokens

    def official_words(self, split: str) -> int | None:
        """The official number of words of a split if the split is complete; None to count the words of the text."""
        return None

    def word_note(self, split: str) -> str:
        """How the words of a split are counted, for the report."""
        return self.word_count

    # Preparing

    def prepared_folder(self) -> Path:
        """The folder of this text, encoded by this tokenizer.

        A tokenizer from a checkpoint uses the folder that the checkpoint's run prepared, if the text is the same. For
        another text, the name of the folder depends on the tokenizer's fingerprint instead of its settings, which would
        denote a tokenizer trained on that other text.
        """
        made_with = self.tokenizer.made_with
        if made_with is None:
            return self._folder(self.tokenizer.settings())
        folder = self._folder(made_with)
        if folder.exists() and read_about(folder)["tokenizer_fingerprint"] == self.tokenizer.fingerprint:
            return folder
        return self._folder({"fingerprint": self.tokenizer.fingerprint})

    def _folder(self, tokenizer: dict[str, object]) -> Path:
        key = {"format": _FORMAT, "source": self.source(), "tokenizer": tokenizer}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.cache_dir / f"{self.name}-{digest[:16]}"

    def prepare_data(self) -> None:
        """Train the tokenizer and encode every split, unless a prepared folder exists."""
        super().prepare_data()
        prepare(self, self.prepared_folder())

    def setup(self, stage: str) -> None:
        """Open the prepared tokens."""
        folder = self.prepared_folder()
        self.about = read_about(folder)
        self.tokenizer.load(folder, self.about["tokenizer_fingerprint"])
        dtype = token_dtype(self.vocab_size)
        self.files = {split: TokenFile(folder, split, dtype) for split in self.splits}
        n_tokens = len(self.files["train"].tokens)
        remedy = f"the training split has only {n_tokens} tokens; set it lower"
        for setting, value in (("window_len", self.window_len), ("train_stride", self.train_stride)):
            require(value < n_tokens, f"data.init_args.{setting}", value, remedy)

    def checked_file(self, split: str) -> TokenFile:
        """The tokens of a split, after verifying their digest, which happens once per process.

        Raises:
            SettingError: If a file has changed since it was prepared.
        """
        file = self.files[split]
        check_file(file.path, self.about)
        check_file(file.index, self.about)
        return file

    # Training

    def train_dataloader(self) -> TrainingLoader:
        """Batches of `(inputs, targets)` in the training order, after the samples already taken; see `TextWindows`."""
        trainer, geometry = self._attached()
        file = self.checked_file("train") if self.check_training_tokens else self.files["train"]
        burn_in, order = geometry.burn_in_len(self.burn_in), self._training_order()
        n_read, n_tokens = burn_in + self.window_len, len(file.tokens)
        remedy = (
            f"with window_len = {self.window_len} a window reads {n_read} tokens, but the training split has only "
            f"{n_tokens}; set one of the two lower"
        )
        require(n_read < n_tokens, "data.init_args.burn_in", self.burn_in, remedy)
        n_batches = max(1, order.windows_per_epoch // (self.batch_size * trainer.world_size))
        return self._training_loader(TextWindows(file, order, self.window_len, burn_in), n_batches)

    def _training_order(self) -> TrainingOrder:
        # With burn-in, a position's context doesn't depend on where its window begins, so a random start of the epoch
        # would gain nothing.
        is_circle = self.burn_in == 0
        return TrainingOrder(len(self.files["train"].tokens), self.train_stride, self.seed, is_circle)

    def describe_samples(self, n_samples: int) -> list[str]:
        """Where in the training text the `n_samples` most recent samples are, the oldest first."""
        file, order = self.files["train"], self._training_order()
        lines = []
        for sample in range(self.progress.samples - n_samples, self.progress.samples):
            start = order.start(sample)
            document = file.document_at(start)
            position = start - document.start
            lines.append(f"sample {sample:,}: {self.window_len:,} tokens from token {position:,} of {document.name}")
        return lines

    # Scoring

    def check_geometry(self, geometry: Geometry) -> None:
        geometry.scoring_window(self.window_len, self.scoring_window_len, self.scoring_stride)
        geometry.burn_in_len(self.burn_in)

    def val_dataloader(self) -> ScoringLoader:
        """The validation split in scoring windows."""
        return self._scoring_loader("validation", "limit_val_batches")

    def test_dataloader(self) -> ScoringLoader:
        """The test split in scoring windows."""
        return self._scoring_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> ScoringLoader:
        """The test split in scoring windows."""
        return self._scoring_loader("test", "limit_predict_batches")

    def _scoring_loader(self, split: str, limit: str) -> ScoringLoader:
        trainer, geometry = self._attached()
        file = self.checked_file(split)
        window_len, stride = geometry.scoring_window(self.window_len, self.scoring_window_len, self.scoring_stride)
        # As many positions per batch as in training, because scoring windows may be much longer.
        batch_size = max(1, self.batch_size * self.window_len // window_len)
        batches = scoring_batches([document.tokens for document in file.documents], window_len, stride, batch_size)
        scored = self._limited(batches, limit)
        if geometry.scores_as_one_pass(window_len, stride):
            # The length doesn't depend on the batch size, so that the last digits of the scores don't, either.
            longest = window_len + JOINED * stride
            scored = in_one_pass(scored, longest, self.batch_size * self.window_len)
        protocol: TextProtocol = {
            "data_fingerprint": self.about["data_fingerprint"],
            "tokenizer_fingerprint": self.about["tokenizer_fingerprint"],
            "window_len": window_len,
            "stride": stride,
            "word_count": self.word_note(split),
            "official_words": self.official_words(split),
        }
        share = share_of_rank(scored, trainer.global_rank, trainer.world_size)
        return ScoringLoader(file, share, split, protocol, self.unigram_nats)

    def unigram_nats(self, split: str) -> list[float]:
        """Total nats of each document of a split under the add-one-smoothed token frequencies of the training split."""
        counts = self.checked_file("train").counts(self.vocab_size) + 1
        nats = np.log(counts.sum()) - np.log(counts)  # (vocab_size,)
        file = self.checked_file(split)
        return [
            float(np.bincount(file.text_of(document), minlength=self.vocab_size) @ nats) for document in file.documents
        ]
