"""Writes a generated world as a local folder of questions, their passages, and a corpus."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from icorag_jax.data.world.config import WorldConfig
from icorag_jax.data.world.writing import write_world


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the command.

    Attributes:
        out: folder to write; a new one, or an empty one.
        world: settings of the world.
    """

    out: Path
    world: tyro.conf.OmitArgPrefixes[WorldConfig] = WorldConfig()  # noqa: RUF009


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: the command line's words, those of this process if None.

    Raises:
        SystemExit: with 2 and a line on standard error for settings or a folder that will not do,
            with 130 when interrupted, with 0 after `--help`.
    """
    try:
        config = tyro.cli(
            Config, prog="python -m icorag_jax.data.world", description=__doc__, args=args
        )
        write_world(config.world, config.out)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
