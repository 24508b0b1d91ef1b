"""The command line. Exit codes: 0 good, 1 a mistake in a model or a file, 2 a wrong call."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

STAGES = ("syntax", "graph", "autodiff", "simplify", "fuse", "loops", "llvm", "asm")
SIZED = ("golden", "plan", "profile")  # commands that take run-time sizes: `--B 8`
_FORMAT = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Mistakes of the user go to stderr as text, never as a traceback."""
    try:
        code = _run(_arguments(argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`| head`) has gone: no message, and none from the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in SIZED:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.sizes = rest  # of `--B 8`: which names there are is known later
    return args


def _run(args: argparse.Namespace) -> int:
    from nnc.cli import commands
    from nnc.errors import ArgumentError, CompileError, Error, NonFiniteError

    try:
        return commands.run(args)
    except CompileError as error:
        print(str(error).strip(), file=sys.stderr)
        return 1
    except NonFiniteError as error:
        print(error, file=sys.stderr)
        return 1
    except ArgumentError as error:
        print(f"nnc {args.command}: {error}", file=sys.stderr)
        return 2
    except Error as error:
        print(f"nnc {args.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnc",
        description="Compiles neural networks written in .nn files to native code.",
        epilog="exit codes: 0 good, 1 a mistake in a model or a file, 2 a wrong call",
        formatter_class=_FORMAT,
    )
    parser.add_argument("--version", action="version", version=f"nnc {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _compile(commands)
    _check(commands)
    _dump(commands)
    _show(commands)
    _names(commands)
    _call(commands)
    _train(commands)
    _test(commands)
    _explain(commands)
    _plan(commands)
    _golden(commands)
    _profile(commands)
    _quantize(commands)
    _fmt(commands)
    return parser


def _version() -> str:
    from nnc import __version__

    return __version__


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, help_: str, more: str = "") -> argparse.ArgumentParser:
    text = help_[0].upper() + help_[1:] + "."
    return commands.add_parser(
        name,
        help=help_,
        description=text,
        epilog=more,
        formatter_class=_FORMAT,
        allow_abbrev=name not in SIZED,
    )


def _model(parser: argparse.ArgumentParser, what: str = "a .nn file") -> None:
    parser.add_argument("model", help=what)
    _define(parser)


def _define(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-D",
        dest="define",
        metavar="M.P=V",
        action="append",
        default=[],
        help="set parameter P of module M, e.g. -D GPT2.L=2",
    )
    parser.add_argument(
        "--library",
        metavar="PATH",
        action="append",
        default=[],
        help="a shared library with C functions (`extern`) that the model calls",
    )


def _max_memory(parser: argparse.ArgumentParser, sizes: str) -> None:
    parser.add_argument(
        "--max-memory",
        metavar="BYTES",
        help=f"at {sizes}, like 8GB: calls of modules are computed again for the gradient to fit",
    )


def _compile(commands: Commands) -> None:
    parser = _command(
        commands,
        "compile",
        "check and compile everything exported",
        "writes DIR/<model>.a and .so (code), .h (C declarations) and .json, which\n"
        'nnc.load("DIR/<model>.json") loads without compiling; docs/deploy.md tells more.',
    )
    _model(parser)
    parser.add_argument("-o", dest="out", metavar="DIR", type=Path, default=Path())
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    _max_memory(parser, "the sizes of --at")
    _pairs(parser, "--at", "NAME=SIZE", "a size for --max-memory and --winograd, e.g. --at B=8")
    _winograd(parser)


def _winograd(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--winograd",
        action="store_true",
        help="windows of 3 x 3 by fewer products; prints how far results are off",
    )


def _check(commands: Commands) -> None:
    parser = _command(commands, "check", "report the mistakes of a file, without compiling")
    _model(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object for each diagnostic")


def _dump(commands: Commands) -> None:
    parser = _command(commands, "dump", "print what an export is at one stage of the compiler")
    _model(parser)
    parser.add_argument("function", metavar="FUNC")
    parser.add_argument("--stage", choices=STAGES, default="graph")


def _show(commands: Commands) -> None:
    parser = _command(
        commands, "show", "print the source of a library name", "nnc show std.nn.Linear"
    )
    parser.add_argument("name", help="std.nn.Linear, or std.nn for the whole file, or std")


def _names(commands: Commands) -> None:
    parser = _command(
        commands, "names", "list every parameter: key, dtype, shape, storage, source line"
    )
    _model(parser, "a .nn file, or the .json of nnc compile")


def _call(commands: Commands) -> None:
    parser = _command(
        commands,
        "run",
        "call an export",
        "nnc run mlp.nn predict --arg x=x.npy --weights net=mlp.safetensors --save y.npz",
    )
    _model(parser, "a .nn file, or the .json of nnc compile")
    parser.add_argument("function", metavar="FUNC")
    _pairs(parser, "--arg", "NAME=VALUE", "a number or an .npy file")
    _pairs(parser, "--weights", "NAME=FILE", "a safetensors file for a module argument")
    _pairs(parser, "--file", "SLOT=FILE", 'a file for weights("SLOT")')
    parser.add_argument("--seed", type=int, default=0, help="of initial values and random numbers")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", metavar="FILE", type=Path, help="write the results, .npz or .npy")
    _nan_trap(parser)
    parser.add_argument(
        "--probe",
        metavar="PATH",
        action="append",
        default=[],
        help="also the value of a `probe` statement, e.g. h.3.attn.p",
    )
    parser.add_argument(
        "--save-weights", metavar="NAME=FILE", action="append", default=[], help="write a module"
    )


def _nan_trap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nan-trap",
        action="store_true",
        help="stop at the first value that is NaN or infinite, and say where it came from",
    )


def _pairs(parser: argparse.ArgumentParser, flag: str, metavar: str, help_: str) -> None:
    parser.add_argument(flag, metavar=metavar, action="append", default=[], help=help_)


def _train(commands: Commands) -> None:
    parser = _command(
        commands,
        "train",
        "drive an exported training step over a data set",
        "writes <model>.safetensors (weights), .ckpt.safetensors (to resume), .jsonl (log) and\n"
        ".png (curves). Ctrl-C saves and stops (exit code 130); --resume goes on, bit for bit.",
    )
    _model(parser)
    parser.add_argument("--data", default="digits", help="digits, or an .npz file (x and y)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, help="learning rate (default: the step's own, or 0.1)")
    parser.add_argument(
        "--schedule", choices=("constant", "cosine", "step", "linear-warmup"), default="constant"
    )
    parser.add_argument("--warmup", type=int, help="steps of linear warm-up (any schedule)")
    parser.add_argument("--step-epochs", type=int, default=10, help="step: epochs between drops")
    parser.add_argument("--gamma", type=float, default=0.1, help="step: factor of each drop")
    parser.add_argument("--min-lr", type=float, default=0.0, help="cosine: the last rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a directory, or the .safetensors file to write")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--export", default="train_step", help="the step (default train_step)")
    parser.add_argument("--eval", dest="evaluate", help="the export to evaluate with")
    parser.add_argument("--metric", choices=("accuracy", "loss", "mse"))
    parser.add_argument("--threads", type=int)
    _nan_trap(parser)
    _pairs(parser, "--arg", "NAME=NUMBER", "a further number for the step")
    _pairs(parser, "--file", "SLOT=FILE", 'a file for weights("SLOT")')


def _test(commands: Commands) -> None:
    parser = _command(
        commands, "test", "run the `test` blocks of a file and check gradients numerically"
    )
    _model(parser)
    parser.add_argument("--no-gradients", action="store_true", help="only the `test` blocks")


def _explain(commands: Commands) -> None:
    parser = _command(
        commands,
        "explain",
        "say what a line became and why, or what an error code means",
        "nnc explain E0302             an entry of the manual of errors\n"
        "nnc explain model.nn          the kernels of every export\n"
        "nnc explain model.nn:12       those that compute something of line 12\n"
        "nnc explain model.nn --at std/nn.nn:7     ... of a line of another file",
    )
    parser.add_argument("what", metavar="MODEL[:LINE] | CODE")
    parser.add_argument("--at", metavar="FILE:LINE", help="a line of an imported file")
    _define(parser)


def _plan(commands: Commands) -> None:
    parser = _command(
        commands,
        "plan",
        "say how much memory a call takes, by source line",
        "nnc plan gpt2.nn train_step --B 8 --T 1024\n\nWithout sizes it prints the formulas.",
    )
    _model(parser)
    _max_memory(parser, "the sizes")
    parser.add_argument("function", metavar="FUNC")
    parser.add_argument("--threads", type=int)
    _winograd(parser)
    parser.add_argument("--all", action="store_true", help="each value, not the sums by line")


def _fmt(commands: Commands) -> None:
    parser = _command(commands, "fmt", "rewrite a file in the standard layout")
    parser.add_argument("model", help="a .nn file")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if it would")


def _golden(commands: Commands) -> None:
    parser = _command(
        commands,
        "golden",
        "record what a file computes and becomes, or compare with what was recorded",
        "model.golden/ holds results, gradients and dumps of each export for inputs that are the\n"
        "same everywhere. nnc golden model.nn --update --B 8 records with sizes of your own;\n"
        "pytest runs the comparison of every .nn file that has such a directory.",
    )
    _model(parser)
    parser.add_argument("--update", action="store_true", help="record, and print what changed")


def _quantize(commands: Commands) -> None:
    parser = _command(
        commands,
        "quantize",
        "store a module's weights in fewer bits, and say what that costs in accuracy",
        "nnc quantize model.nn predict --weights net.safetensors --data x.npz --to bf16\n\n"
        "writes DIR/<model>.<format>.json (for nnc.load), .a, .so, .h and .safetensors;\n"
        "docs/quantize.md tells more.",
    )
    _model(parser)
    parser.add_argument("function", metavar="FUNC", nargs="?", help="the export that data are for")
    parser.add_argument("--weights", metavar="FILE", required=True, help="a safetensors file")
    parser.add_argument("--to", choices=("bf16", "int8"), default="bf16")
    parser.add_argument(
        "--data",
        metavar="FILE",
        action="append",
        default=[],
        help="an .npz file with the arguments of a call of FUNC by name",
    )
    parser.add_argument("-o", dest="out", metavar="DIR", type=Path, default=Path())


def _profile(commands: Commands) -> None:
    parser = _command(
        commands,
        "profile",
        "measure one call, kernel by kernel, and say where the time goes, by source line",
        "nnc profile gpt2.nn train_step --B 8 --T 1024\n\n"
        "Arguments are made up; modules begin as they are declared. The roof is what this\n"
        "machine can do at most: multiply-adds in registers, bytes read, whichever takes longer.",
    )
    _model(parser)
    parser.add_argument("function", metavar="FUNC")
    parser.add_argument("--threads", type=int)
    _winograd(parser)
    parser.add_argument(
        "--trace", metavar="FILE", type=Path, help="write a Chrome trace (ui.perfetto.dev), JSON"
    )
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help="draw time by line and the roofline, .png"
    )
