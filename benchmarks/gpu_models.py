"""Whole models on a GPU: a training step and where its time goes, memory, generation, the longest text, loss curves."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import llp
from gpu_attention import Context, dense_on, merged_on
from gpu_record import Record, in_turn, peak_memory, recover, seconds, timed
from gpu_sizes import CONFIGS, Model, Sizes
from llp.decoder.kernels.fused import CUDNN
from llp.decoder.patterns import LayerPattern, causal_attention

Way = tuple[str, Context, LayerPattern]
"""How the layers attend: its name, the context that a step runs in, and the pattern."""


class Trained:
    """One model and its optimizer; the layers attend as each contestant has it, with the same weights."""

    def __init__(self, sizes: Sizes, device: torch.device, model: Model) -> None:
        self.sizes, self.device, self.model = sizes, device, model
        module: Any = llp.LLP(**model.settings)
        with device:
            module.configure_model()
        self.decoder: Any = module.decoder.to(device)
        self.pattern: LayerPattern = module.layer_pattern(0)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=1e-4, fused=True)
        self.compiled = [torch.compile(block.forward, fullgraph=True) for block in self.decoder.layers]

    def ways(self, cudnn: bool = True) -> list[Way]:
        """LLP and the dense Transformer by each backend."""
        if self.device.type == "cpu":
            return [
                ("LLP, cpu", nullcontext, self.pattern),
                ("dense, cpu", nullcontext, LayerPattern(causal_attention)),
            ]
        found: list[Way] = [("LLP, flash", nullcontext, self.pattern)]
        if cudnn and self.model.settings.get("dropout", 0.0) == 0.0:  # with dropout nothing is merged
            found.append(("LLP, cuDNN", merged_on(CUDNN, self.device), self.pattern))
        names = ("flash", "cuDNN") if cudnn else ("flash",)
        dense = dense_on(self.device)
        return found + [(f"dense, {name}", dense[name], LayerPattern(causal_attention)) for name in names]

    def step(self, way: Way, n: int, batch: int, compiled: bool = False) -> tuple[Callable[[], Any], float]:
        """A training step, and its useful FLOPs."""
        _, context, pattern = way
        tokens = torch.randint(self.model.settings["vocab_size"], (batch, n + 1), device=self.device)
        autocast = partial(torch.autocast, self.device.type, self.sizes.dtype, self.sizes.dtype != torch.float32)

        def run() -> None:
            self.attend_by(pattern, compiled)
            self.optimizer.zero_grad()
            with context():
                with autocast():
                    losses = self.decoder(tokens[:, :-1], tokens[:, 1:])
                losses.mean.backward()
            self.optimizer.step()

        self.attend_by(pattern, compiled=False)
        return run, 3 * batch * self.decoder.flops(n)

    def attend_by(self, pattern: LayerPattern, compiled: bool) -> None:
        """Give all layers a pattern, and compile them or not."""
        for block, forward in zip(self.decoder.layers, self.compiled, strict=True):
            block.attention.pattern = pattern
            block.__dict__.pop("forward", None)
            if compiled:
                block.forward = forward


def matrix_rates(record: Record, sizes: Sizes, device: torch.device) -> None:
    """The products of a layer's maps, in turn with square ones."""
    rows = sizes.matrix_size
    for dtype in dict.fromkeys((sizes.dtype, torch.float32)):
        contestants = {}
        for dim in sizes.shapes:
            x, weight = (torch.randn(size, dim, device=device, dtype=dtype) for size in (rows, 4 * dim))
            name = f"({rows:,}, {dim:,}) x ({dim:,}, {4 * dim:,}), {str(dtype).removeprefix('torch.')}"
            contestants[name] = partial(torch.nn.functional.linear, x, weight), 2 * rows * dim * 4 * dim
        found = timed(record, device, dtype, contestants, sizes.rounds, sizes.matrix_size, sizes.at_least_s)
        for name, figures in found.items():
            record.row(name, **figures)


def step_profile(record: Record, sizes: Sizes, device: torch.device, model: str, compiled: bool) -> None:
    """The operators that take most of the device's time in a step of LLP."""
    kind = sizes.models[model]
    trained = Trained(sizes, device, kind)
    run, _ = trained.step(trained.ways()[0], kind.n, kind.batch, compiled)

    def profiled() -> Any:
        seconds(run, times=2)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as profiler:
            seconds(run)
        return profiler.key_averages()

    averages = record.attempt("profile", profiled)
    if averages is None:
        return
    averages = [entry for entry in averages if not entry.is_user_annotation]
    on_device = [entry for entry in averages if entry.device_type == DeviceType.CUDA]
    operators = [entry for entry in averages if entry.device_type == DeviceType.CPU]
    if device.type == "cpu":
        _most(record, "operator", operators, lambda entry: entry.self_cpu_time_total, operators)
    else:  # kernels, and the same time by the operator that launched them
        _most(record, "kernel", on_device, lambda entry: entry.self_device_time_total, on_device)
        _most(record, "operator", operators, lambda entry: entry.self_device_time_total, on_device)


def _most(record: Record, kind: str, entries: list[Any], time_us: Callable[[Any], float], whole: list[Any]) -> None:
    """Rows of what takes most of the time."""
    total_us = max(1e-9, sum(time_us(entry) for entry in whole))
    for entry in sorted(entries, key=time_us, reverse=True)[:10]:
        figures = {"ms": time_us(entry) / 1e3, "share_of_step": time_us(entry) / total_us, "calls": entry.count}
        record.row(f"{kind}: {entry.key[:100]}", **figures)


def step_speed(record: Record, sizes: Sizes, device: torch.device, model: str, compiled: str = "") -> None:
    """Steps of LLP and the dense model in turn; or those of one of them, `compiled`, in turn with itself uncompiled."""
    kind = sizes.models[model]
    trained = record.attempt("the model", lambda: Trained(sizes, device, kind))
    if trained is None:
        return
    contestants = {}
    for way in trained.ways(cudnn=not compiled):
        if way[0].startswith(compiled):
            contestants[way[0]] = trained.step(way, kind.n, kind.batch)
            if compiled:
                contestants[f"{way[0]}, compiled"] = trained.step(way, kind.n, kind.batch, compiled=True)
    n_parameters = sum(parameter.numel() for parameter in trained.decoder.parameters())
    labels = {"n": kind.n, "batch": kind.batch, "m": kind.settings["segment_len"], "parameters": n_parameters}
    found = timed(record, device, sizes.dtype, contestants, sizes.rounds, sizes.matrix_size, sizes.at_least_s)
    for name, figures in found.items():
        with peak_memory(device) as peak:
            contestants[name][0]()
        record.row(name, **labels, **figures, **peak, tokens_per_s=1e3 * kind.n * kind.batch / figures["ms"])


def step_by_length(record: Record, sizes: Sizes, device: torch.device, n: int) -> None:
    """Time and peak memory of a step over one text of `n` tokens: LLP, and the dense model by the same backend."""
    trained = Trained(sizes, device, sizes.models["130 M"])
    contestants = {way[0]: trained.step(way, n, 1) for way in trained.ways(cudnn=False)}
    found = timed(record, device, sizes.dtype, contestants, 2, sizes.matrix_size, 0.0)
    for name, figures in found.items():
        recover()
        with peak_memory(device) as peak:
            contestants[name][0]()
        record.row(name, n=n, batch=1, **figures, **peak, tokens_per_s=1e3 * n / figures["ms"])


def generation(record: Record, sizes: Sizes, device: torch.device, place: int) -> None:
    """Tokens that are drawn per second after a prompt of `place` tokens, one text and several side by side."""
    settings = dict(sizes.models["130 M"].settings)
    segment_len = settings.pop("segment_len")
    made = {"LLP": llp.LLP(**settings, segment_len=segment_len), "dense": llp.Transformer(**settings)}
    models: dict[str, Any] = {}
    for name, model in made.items():
        model.configure_model()
        models[name] = model.to(device, sizes.dtype).eval()
    weights = [w for name, w in models["LLP"].decoder.named_parameters() if not name.startswith("embed")]
    flat = torch.cat([weight.detach().flatten() for weight in weights])
    matrix = flat[: len(flat) // settings["dim"] * settings["dim"]].view(-1, settings["dim"])
    runs: dict[str, Callable[[], Any]] = {"reading all weights": partial(torch.mv, matrix, matrix[0])}
    batches = {}
    with torch.inference_mode():
        for name, model in models.items():
            for batch in (1, sizes.batch):
                prompt = torch.randint(settings["vocab_size"], (batch, place), device=device)
                memory = model.new_cache(batch_size=batch)
                label = f"{name}, batch {batch}"
                read = partial(model.extend, prompt, memory, 1)
                took = record.attempt(f"{label}, the prompt", lambda read=read: seconds(read))
                if took is not None:
                    record.row(f"{label}, the prompt", place=place, ms=1e3 * took, tokens_per_s=batch * place / took)
                    runs[label], batches[label] = partial(model.extend, prompt[:, :1], memory), batch
        times = in_turn(record, runs, sizes.rounds, sizes.at_least_s)
    reading = statistics.median(times["reading all weights"])
    for label, batch in batches.items():
        if label in times:
            took = statistics.median(times[label])
            figures = {"ms": 1e3 * took, "tokens_per_s": batch / took, "share_of_reading_rate": reading / took}
            record.row(label, place=place, batch=batch, **figures)


def longest(record: Record, sizes: Sizes, device: torch.device, checkpointing: bool) -> None:
    """The longest text that a step of the model of 130 million parameters has room for: twice as long each time."""
    trained = Trained(sizes, device, sizes.models["130 M"])
    trained.decoder.activation_checkpointing = checkpointing
    way, n, fits, stop = trained.ways()[0], sizes.first_length, 0, sizes.most_length
    while n <= stop:
        took = record.attempt(f"n {n:,}", partial(_step_or_none, trained, way, n))
        if took is None:
            return
        if "why" in took:  # no room: once more, between this and what had room
            record.row(f"n {n:,}", n=n, **took)
            if fits == 0 or n < 2 * fits:
                return
            n, stop = 3 * fits // 2, 3 * fits // 2
        else:
            record.row(f"n {n:,}", n=n, **took, tokens_per_s=1e3 * n / took["ms"])
            fits, n = n, 2 * n


def _step_or_none(trained: Trained, way: Way, n: int) -> dict[str, Any]:
    try:
        run, _ = trained.step(way, n, 1)
        with peak_memory(trained.device) as peak:
            took = seconds(run)
    except torch.OutOfMemoryError:
        trained.optimizer.zero_grad()
    else:
        return {"ms": 1e3 * took, **peak}
    recover()
    return {"why": "no room"}


def curve(record: Record, sizes: Sizes, device: torch.device, precision: str, folder: Path) -> None:
    """The losses of the quickstart's training, in one of Lightning's precisions; the text comes with Python."""
    from lightning.pytorch import Callback, Trainer, seed_everything

    import datamodules

    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text(encoding="utf-8"))
    is_small = sizes.curve_steps < config["trainer"]["max_steps"]
    size = config["data"]["init_args"]["tokenizer"]["init_args"]["vocab_size"]
    tokenizer = datamodules.Bytes() if is_small else datamodules.SentencePiece(vocab_size=size)
    windows = {"window_len": 32 if is_small else 512, "batch_size": config["data"]["init_args"]["batch_size"]}
    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *more: Any) -> None:
            losses.append(module.step_loss.item())

    def run() -> float:
        seed_everything(config["seed_everything"], verbose=False)
        data = datamodules.PythonReference(cache_dir=str(folder), tokenizer=tokenizer, **windows)
        settings = config["model"]["init_args"] | ({"dim": 16, "segment_len": 8} if is_small else {})
        model = llp.LLP(vocab_size=data.vocab_size, **settings)
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_steps=sizes.curve_steps,
            gradient_clip_val=config["trainer"]["gradient_clip_val"],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Losses()],
        )
        return seconds(lambda: trainer.fit(model, data))

    took = record.attempt(precision, run)
    if took is not None:
        last = statistics.mean(losses[-25:])
        record.row(precision, steps=len(losses), ms=1e3 * took, mean_of_last_losses=last, losses=losses)
