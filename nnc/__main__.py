"""The command line: `python -m nnc` and `nnc`."""

from nnc.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
