"""`python -m runtime.moe`: say what a model folder is, import a GGUF file, upcycle a dense model.

`inspect` needs no torch: `fallow submit` runs it on the user's machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from runtime.moe.description import describe, examine
from runtime.moe.layout import DamagedCheckpoint


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 4 refused, with one line on standard error that says why."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (DamagedCheckpoint, ValidationError, OSError) as error:
        print(error, file=sys.stderr)
        return 4
    return 0


def _inspect(options: argparse.Namespace) -> None:
    described = describe(options.folder) if options.config_only else examine(options.folder)
    config = described.config
    found = {
        "architecture": described.family.architecture,
        "parameters": config.parameters,
        "active_parameters": config.active_parameters,
        "dense_parameters": config.dense_parameters,
        "expert_parameters": config.expert_parameters,
        "experts": config.expert_layers * config.experts,
        "config": config.model_dump(),
    }
    print(json.dumps(found))


def _import_gguf(options: argparse.Namespace) -> None:
    from runtime.moe.gguf_import import import_gguf

    import_gguf(options.file, options.folder)


def _upcycle(options: argparse.Namespace) -> None:
    from runtime.moe.upcycling import upcycle

    upcycle(options.source, options.folder, options.experts, options.active, options.seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.moe", description=__doc__)
    commands = parser.add_subparsers(required=True)
    inspect = commands.add_parser("inspect", help="check a model folder and print what it is, as JSON")
    inspect.add_argument("folder", type=Path)
    inspect.add_argument("--config-only", action="store_true", help="read config.json alone, no tensors")
    inspect.set_defaults(run=_inspect)
    gguf = commands.add_parser("import-gguf", help="write a Hugging Face folder from a GGUF file")
    gguf.add_argument("file", type=Path)
    gguf.add_argument("folder", type=Path)
    gguf.set_defaults(run=_import_gguf)
    copies = commands.add_parser("upcycle", help="write a model with experts from a dense one, its output the same")
    copies.add_argument("source", type=Path)
    copies.add_argument("folder", type=Path)
    copies.add_argument("--experts", type=int, default=8)
    copies.add_argument("--active", type=int, default=2, help="experts per token")
    copies.add_argument("--seed", type=int, default=0, help="of the router")
    copies.set_defaults(run=_upcycle)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
