"""What each command does."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nnc.cli.options import load_model, number, overrides, pairs
from nnc.errors import ArgumentError, DeviceError
from nnc.ir.signature import ModuleSig


def run(args: argparse.Namespace) -> int:
    """The exit code of one command."""
    match args.command:
        case "compile":
            return compile_(args)
        case "check":
            return check(args)
        case "dump":
            return dump(args)
        case "show":
            return show(args)
        case "names":
            return names(args)
        case "run":
            from nnc.cli.call import call

            return call(args)
        case "train":
            return train(args)
        case "fmt":
            from nnc.cli.formatting import fmt

            return fmt(args)
        case "explain":
            from nnc.cli.explain import explain

            return explain(args)
        case "golden":
            from nnc.cli.golden import golden

            return golden(args)
        case "profile":
            from nnc.cli.profile import profile

            return profile(args)
        case "quantize":
            from nnc.cli.quantize import quantize

            return quantize(args)
        case "plan":
            from nnc.cli.plan import plan

            return plan(args)
        case _:
            from nnc.cli.testing import test

            return test(args)


def compile_(args: argparse.Namespace) -> int:
    from nnc import driver
    from nnc.runtime import artifact
    from nnc.runtime.memory import byte_count

    if args.target == "cuda":
        raise DeviceError("this nnc has no CUDA back end yet")
    given = {n: number(v, f"--at {n}") for n, v in pairs("--at", args.at).items()}
    if any(isinstance(v, float | bool) or v < 1 for v in given.values()):
        raise ArgumentError("--at: a size is a whole number, like --at B=8")
    at, modules, budget = {n: int(v) for n, v in given.items()}, overrides(args.define), None
    if args.max_memory is not None:
        budget = driver.Budget(byte_count(args.max_memory), at)
    compiled = driver.compile_file(args.model, modules, budget=budget, winograd=args.winograd)
    for choice in compiled.choices:
        print(choice)
    if args.winograd:
        from nnc.cli.winograd import errors

        print(errors(args.model, compiled, modules, at))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"-o {args.out}: {error.strerror}") from None
    parts = (compiled.manifest, compiled.objects, compiled.support)
    paths = artifact.write(args.out, Path(args.model).stem, *parts)
    shared = artifact.link(paths[0])
    for path in [*paths, *([shared] if shared else [])]:
        print(path)
    if shared is None:
        print(
            f"no {paths[0].stem}.so: there is no linker here (apt install binutils, or gcc)",
            file=sys.stderr,
        )
    return 0


def check(args: argparse.Namespace) -> int:
    from nnc import driver

    checked = driver.check_file(args.model, overrides(args.define))
    for diagnostic in checked.diagnostics:
        if args.json:
            print(json.dumps(diagnostic.json()))
        else:
            print(f"{diagnostic}\n", file=sys.stderr)
    return 1 if checked.errors else 0


def dump(args: argparse.Namespace) -> int:
    from nnc import driver

    print(driver.dump_file(args.model, args.function, args.stage, overrides(args.define)).rstrip())
    return 0


def names(args: argparse.Namespace) -> int:
    modules = load_model(args).manifest.modules
    print("\n\n".join(map(table, modules)) or f"{args.model} exports nothing with parameters")
    return 0


def table(module: ModuleSig) -> str:
    """Key, type, storage class and source line of every leaf."""
    from nnc.runtime.leaves import layout_of
    from nnc.runtime.memory import human

    layout = layout_of(module.leaves)
    rows = [(x.key, x.type.dtype, _shape(x.type.shape), x.storage, x.place) for x in module.leaves]
    widths = [max([len(row[i]) for row in rows], default=0) for i in range(5)]
    title = f"{module.id}: {layout.elements:,} parameters, {human(layout.nbytes)}"
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _shape(shape: tuple[object, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "scalar"


def show(args: argparse.Namespace) -> int:
    from nnc.cli.library import shown

    print(shown(args.name))
    return 0


def train(args: argparse.Namespace) -> int:
    from nnc.runtime.progress import reporter
    from nnc.runtime.roles import declared_rate
    from nnc.runtime.train import Options, train

    model = load_model(args)
    extra = {k: number(v, f"--arg {k}") for k, v in pairs("--arg", args.arg).items()}
    options = Options(
        data=args.data,
        epochs=args.epochs,
        batch=args.batch,
        lr=declared_rate(model, args.export) if args.lr is None else args.lr,
        schedule=args.schedule,
        warmup=args.warmup,
        every=args.step_epochs,
        gamma=args.gamma,
        min_lr=args.min_lr,
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        export=args.export,
        evaluate=args.evaluate,
        metric=args.metric,
        args=extra,
        files=pairs("--file", args.file),
    )
    return train(model, options, reporter())
