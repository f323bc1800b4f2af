"""What results depend on beside their settings."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import experiments
import icorag_jax

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pandas", "pyarrow", "matplotlib",
    "orbax-checkpoint", "safetensors", "tokenizers", "bm25s", "pystemmer", "icorag_jax",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions, settings of JAX, the device, and a fingerprint of the project's own code."""
    device, *_ = devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "code": _code_fingerprint(),
        "settings": {
            "x64": bool(jax.config.read("jax_enable_x64")),
            # Flags with a path in them say where to write, not what to compute.
            "xla_flags": [
                flag for flag in os.environ.get("XLA_FLAGS", "").split() if "/" not in flag
            ],
        },
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": len(devices),
        },
    }


def _code_fingerprint() -> str:
    """Of the project's own source files: a run does not go on with other code."""
    digest = hashlib.sha256()
    for package in (icorag_jax, experiments):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
