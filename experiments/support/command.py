"""The command line of an experiment, from the dataclass of its settings and its presets."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import jax
import tyro

Config = TypeVar("Config")
Presets = Mapping[str, Mapping[str, Any]]


def run_command(
    main: Callable[[Config], None],
    config_type: type[Config],
    presets: Presets,
    args: Sequence[str] | None = None,
) -> None:
    """Runs an experiment from the command line, and exits if that fails.

    Each field of the settings is an option, with its line of the class docstring as help.
    `--preset` replaces defaults; options given explicitly win over it. The module docstring of
    `main` is the description. Matrix products are in full float32, where the theory is exact.

    Args:
        main: the experiment; its ValueErrors, OSErrors and FloatingPointErrors are the user's.
        config_type: a dataclass.
        presets: values of its fields under the preset's name; the first preset is the default.
        args: the command line's words, those of this process if None.

    Raises:
        SystemExit: with 2 and a line on standard error for a user's error, with 130 when
            interrupted, with 0 after `--help`.
    """
    use_all_cores()
    with exit_on_user_errors():
        main(_parse(main, config_type, presets, sys.argv[1:] if args is None else args))


def use_all_cores() -> None:
    """Makes every core a device of its own, where JAX runs on CPU: runs are spread over devices.

    Cores are those that this process may run on, where the system tells. Left as it is where JAX
    has computed something already, which fixes its devices.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


@contextlib.contextmanager
def exit_on_user_errors() -> Iterator[None]:
    """Makes errors of the user's a line on standard error and an exit code.

    Matrix products within are in full float32.

    Raises:
        SystemExit: as `run_command` says.
    """
    try:
        with jax.default_matmul_precision("float32"):
            yield
    except KeyboardInterrupt:
        _exit("interrupted; run again with --resume to go on", 130)
    except (ValueError, OSError, FloatingPointError) as error:
        _exit(f"error: {str(error) or type(error).__name__}", 2)


def load_preset(config_type: type[Config], presets: Presets, name: str, **overrides: Any) -> Config:
    """Settings of a preset, for use without a command line.

    Args:
        config_type: a dataclass.
        presets: values of its fields under the preset's name.
        name: the preset.
        **overrides: fields that win over the preset, those without a default among them.

    Raises:
        ValueError: there is no such preset.
        TypeError: there is no such field, or one without a value.
    """
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {name}")
    return config_type(**{**presets[name], **overrides})


def check_numbers(config: Any) -> None:
    """Checks that all numbers among settings are finite and above 0, the seed at least 0.

    Raises:
        ValueError: names the setting that is not.
    """
    for field in dataclasses.fields(config):
        found = getattr(config, field.name)
        for value in found if isinstance(found, tuple) else (found,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if field.name == "seed":
                if value < 0:
                    raise ValueError(f"seed must be at least 0, got {value}")
            elif not 0 < value < math.inf:
                least = "at least 1" if isinstance(value, int) else "above 0 and finite"
                raise ValueError(f"{field.name} must be {least}, got {value}")


def _parse(main: Callable, config_type: type, presets: Presets, args: Sequence[str]) -> Any:
    module, names = sys.modules[main.__module__], tuple(presets)
    program = f"python -m {module.__spec__.name}" if module.__spec__ else None
    choice = Annotated[
        Literal[names],
        tyro.conf.arg(help="settings to start from; options given explicitly win."),
    ]

    # First the preset alone, as it decides on the defaults of all else.
    def preset_option(preset: choice = names[0]) -> str:
        return preset

    preset, _ = tyro.cli(
        preset_option, prog=program, args=args, add_help=False, return_unknown_args=True
    )
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(config_type)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    defaults = load_preset(config_type, presets, preset, **required)

    def all_options(
        config: Annotated[config_type, tyro.conf.arg(name="")] = defaults,
        preset: choice = preset,
    ) -> Any:
        return config

    return tyro.cli(all_options, prog=program, description=module.__doc__, args=args)


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
