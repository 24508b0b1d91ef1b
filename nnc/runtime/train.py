"""`nnc train`: drives an exported training step over a data set.

The order of the samples depends on (seed, epoch) only and a checkpoint holds everything else, so
that a resumed run gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnc.errors import ArgumentError, Error, LoadError, NonFiniteError, SaveError, nearest
from nnc.runtime import tensorfile
from nnc.runtime.data import Data, load
from nnc.runtime.evaluate import Evaluator, evaluator
from nnc.runtime.export import Export
from nnc.runtime.leaves import Module
from nnc.runtime.memory import Array
from nnc.runtime.model import Model
from nnc.runtime.progress import Log, Reporter, picture
from nnc.runtime.roles import Roles, fitted, make_modules, roles

SCHEDULES = ("constant", "cosine", "step", "linear-warmup")


@dataclass(frozen=True)
class Options:
    """What the command line says. `warmup` counts steps, `every` epochs."""

    data: str
    epochs: int = 30
    batch: int = 64
    lr: float = 0.1
    schedule: str = "constant"
    warmup: int | None = None
    every: int = 10
    gamma: float = 0.1
    min_lr: float = 0.0
    seed: int = 0
    out: Path | None = None
    resume: bool = False
    export: str = "train_step"
    evaluate: str | None = None
    metric: str | None = None
    args: Mapping[str, float | int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class State:
    """Where a run stands: `batch` batches of epoch number `epoch` (from 0) are done."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Files:
    weights: Path
    checkpoint: Path
    previous: Path
    log: Path
    picture: Path


@dataclass
class Run:
    """One training run."""

    model: Model
    options: Options
    data: Data
    export: Export
    roles: Roles
    modules: dict[str, Module]
    arrays: list[Array]
    evaluator: Evaluator | None
    files: Files
    state: State

    @property
    def batches(self) -> int:
        return -(-self.data.size // self.options.batch)

    @property
    def metric(self) -> str | None:
        """The metric's name in logs; a held-out loss is told from the training loss."""
        kind = self.evaluator.metric if self.evaluator else None
        return "held-out loss" if kind == "loss" else kind


def train(model: Model, options: Options, reporter: Reporter) -> int:
    """Runs to the last epoch; 0, or 130 when a signal ended it (saved, to be resumed)."""
    run = _prepare(model, options, reporter)
    with _signals() as stop, reporter.running(run.options.epochs * run.batches):
        reporter.advance(run.state.epoch * run.batches + run.state.batch)
        while run.state.epoch < options.epochs and not stop.is_set():
            try:
                _epoch(run, reporter, stop)
            except NonFiniteError as error:
                save_checkpoint(run)
                kept = f"  {run.files.checkpoint} holds the state before this step"
                raise NonFiniteError(f"{error}\n{kept}") from None
            save_checkpoint(run)
    if run.state.epoch < options.epochs:
        reporter.line(f"stopped; saved {run.files.checkpoint}: continue with --resume")
        return 130
    _finish(run, reporter)
    return 0


def _prepare(model: Model, options: Options, reporter: Reporter) -> Run:
    _check(options)
    export = model.exports.get(options.export)
    if export is None:
        hint = nearest(options.export, model.exports)
        raise ArgumentError(f"there is no export {options.export!r} to train with{hint}")
    data = load(options.data)
    found = roles(export, data, options.args)
    modules = make_modules(export, found, options.seed, options.files)
    if not modules:
        raise ArgumentError(f"{options.export} takes no module: there is nothing to train")
    files = _files(model, options)
    run = Run(
        model=model,
        options=options,
        data=data,
        export=export,
        roles=found,
        modules=modules,
        arrays=fitted(found, data.arrays),
        evaluator=evaluator(
            model.exports, modules, data, options.batch, options.evaluate, options.metric
        ),
        files=files,
        state=State(),
    )
    model.seed(options.seed)
    tensorfile.remove_litter(files.checkpoint)
    if options.resume:
        _resume(run, reporter)
    Log(files.log).keep(run.state.history)
    return run


def _check(options: Options) -> None:
    for name in ("epochs", "batch", "every"):
        if getattr(options, name) < 1:
            raise ArgumentError(f"--{name} must be at least 1")
    if not (math.isfinite(options.lr) and options.lr >= 0):
        raise ArgumentError("--lr must be a number that is not negative")
    if options.schedule not in SCHEDULES:
        raise ArgumentError(f"--schedule is one of {', '.join(SCHEDULES)}")


def _files(model: Model, options: Options) -> Files:
    out = options.out or Path()
    stem = Path(model.manifest.source).stem
    base = out.with_suffix("") if out.suffix == ".safetensors" else out / stem
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"cannot make {base.parent}: {error.strerror}") from None

    def named(suffix: str) -> Path:
        return base.with_name(base.name + suffix)

    return Files(
        named(".safetensors"),
        named(".ckpt.safetensors"),
        named(".ckpt.previous.safetensors"),
        named(".jsonl"),
        named(".png"),
    )


# ---- the loop ---------------------------------------------------------------------------------


def _epoch(run: Run, reporter: Reporter, stop: threading.Event) -> None:
    """The rest of one epoch, or until `stop`."""
    state, options = run.state, run.options
    order = np.random.default_rng([options.seed & (1 << 64) - 1, state.epoch]).permutation(
        run.data.size
    )
    began = time.monotonic()
    lr = options.lr
    while state.batch < run.batches and not stop.is_set():
        rows = order[state.batch * options.batch : (state.batch + 1) * options.batch]
        lr = learning_rate(options, state.epoch, state.batch, run.batches)
        loss = _step(run, rows, lr)
        state.batch += 1
        state.loss_sum += loss * len(rows)
        state.samples += len(rows)
        reporter.step(state.epoch + 1, loss)
    state.seconds += time.monotonic() - began
    if state.batch == run.batches:
        _close_epoch(run, reporter, lr)


def _step(run: Run, rows: Array, lr: float) -> float:
    result = run.export(**run.roles.arguments(run.modules, [a[rows] for a in run.arrays], lr))
    loss = result[0] if isinstance(result, tuple) else result
    if loss is None or np.ndim(loss):
        return 0.0
    if not math.isfinite(loss):
        place = f"epoch {run.state.epoch + 1}, batch {run.state.batch + 1}"
        raise Error(
            f"the loss is {float(loss)} at {place}\n"
            f"  help: a smaller --lr (now {lr:g}); the last good state is {run.files.checkpoint}"
        )
    return float(loss)


def _close_epoch(run: Run, reporter: Reporter, lr: float) -> None:
    state = run.state
    row: dict[str, Any] = {"epoch": state.epoch + 1, "loss": state.loss_sum / state.samples}
    if run.evaluator is not None and run.metric is not None:
        row[run.metric] = run.evaluator()
    row |= {"lr": lr, "step": (state.epoch + 1) * run.batches, "seconds": round(state.seconds, 3)}
    state.history.append(row)
    state.epoch, state.batch = state.epoch + 1, 0
    state.loss_sum, state.samples, state.seconds = 0.0, 0, 0.0
    Log(run.files.log).add(row)
    reporter.epoch(row, run.options.epochs)


def learning_rate(options: Options, epoch: int, batch: int, batches: int) -> float:
    """The rate of one step: warm-up first (any schedule), then the schedule."""
    step, total = epoch * batches + batch, options.epochs * batches
    warmup = options.warmup
    if warmup is None:
        warmup = max(total // 20, 1) if options.schedule == "linear-warmup" else 0
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    match options.schedule:
        case "cosine":
            part = (step - warmup) / max(total - warmup, 1)
            wave = 0.5 * (1 + math.cos(math.pi * part))
            return options.min_lr + (options.lr - options.min_lr) * wave
        case "step":
            return float(options.lr * options.gamma ** (epoch // options.every))
    return options.lr


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event set by the first Ctrl-C or SIGTERM; the second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    old = {s: signal.getsignal(s) for s in kinds}

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, old[signal.Signals(number)])

    for s in kinds:
        signal.signal(s, handle)
    try:
        yield stop
    finally:
        for s in kinds:
            signal.signal(s, old[s])


# ---- saving and resuming ----------------------------------------------------------------------

_SAME = ("data", "batch", "seed", "export")  # what a resumed run may not change


def save_checkpoint(run: Run) -> None:
    """Everything in one file; the one before is kept beside it."""
    files = run.files
    about = {k: getattr(run.options, k) for k in _SAME}
    metadata = {"nnc.train": json.dumps({"state": asdict(run.state), "options": about})}
    if files.checkpoint.exists():
        with contextlib.suppress(OSError):
            spare = files.previous.with_name(f".{files.previous.name}.{os.getpid()}.tmp")
            spare.unlink(missing_ok=True)
            os.link(files.checkpoint, spare)
            os.replace(spare, files.previous)
    run.model.checkpoint(files.checkpoint, metadata, **run.modules)


def _resume(run: Run, reporter: Reporter) -> None:
    """From the checkpoint, or loudly from the one before it when the newest is damaged."""
    problem: LoadError | None = None
    for path in (run.files.checkpoint, run.files.previous):
        if not path.exists():
            continue
        try:
            _restore(run, path)
        except LoadError as error:
            reporter.line(f"warning: {error}")
            problem = error
            continue
        reporter.line(f"resumed {path} after epoch {run.state.epoch}, batch {run.state.batch}")
        return
    if problem is not None:
        raise problem.with_traceback(None)
    raise LoadError(f"there is no checkpoint {run.files.checkpoint} to resume")


def _restore(run: Run, path: Path) -> None:
    metadata = run.model.restore(path, **run.modules)
    try:
        saved = json.loads(metadata["nnc.train"])
        state, about = State(**saved["state"]), dict(saved["options"])
    except (LookupError, TypeError, ValueError):
        raise LoadError(f"{path} was not written by nnc train") from None
    for key in _SAME:
        now = getattr(run.options, key)
        if about.get(key) != now:
            raise ArgumentError(
                f"{path} is of a run with --{key} {about.get(key)}, this one says {now}"
            )
    run.state = state


def _finish(run: Run, reporter: Reporter) -> None:
    """Weights alone, so that `net.load` takes them, and the picture."""
    nets = [(n, m) for n, m in run.modules.items() if not m.sig.trees]
    for i, (name, net) in enumerate(nets):
        path = run.files.weights
        path = path.with_suffix(f".{name}.safetensors") if i else path
        net.save(path)
        reporter.line(f"saved {path} ({net.sig.id})")
    try:
        picture(run.files.picture, run.state.history, run.metric, run.model.manifest.source)
    except ImportError:
        reporter.line("no picture: it needs matplotlib (pip install 'nnc[train]')")
    else:
        reporter.line(f"saved {run.files.picture}")
