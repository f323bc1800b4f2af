"""Decoders on several devices, in processes that have these: this one has one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import models
import numpy as np
import pytest
import two_processes

from icorag_jax.lm import pretrained

HERE = Path(__file__).parent


def run_on_eight_devices(marks):
    """Runs `eight_devices.py` under pytest, the settings of `conftest.py` included."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "pytest", str(HERE / "eight_devices.py"), "-m", marks]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_eight_devices():
    run_on_eight_devices("not slow")


@pytest.mark.slow
def test_eight_devices_in_other_meshes():
    run_on_eight_devices("slow")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_two_processes(tmp_path):
    """Each reads its part of a checkpoint; logits, tokens and scores are those of one device."""
    config, folder = models.small(), tmp_path / "model"
    pretrained.save_pretrained(
        folder, pretrained.LanguageModel(config, models.parameters(config), None)
    )
    coordinator, outs = f"127.0.0.1:{free_port()}", [tmp_path / f"{i}.npz" for i in range(2)]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_proxy")}
    arguments = {
        "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
        "env": {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    }  # fmt: skip
    program = [sys.executable, two_processes.__file__, coordinator]
    processes = [
        subprocess.Popen([*program, str(index), folder, out], **arguments)
        for index, out in enumerate(outs)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)

    model = pretrained.from_pretrained(folder, dtype=jnp.float32)
    logits, tokens, scores = two_processes.numbers(model, None)
    for out in outs:
        found = np.load(out)
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(found["scores"], scores, atol=1e-5, rtol=1e-5)
        assert json.loads(str(found["tokens"])) == tokens
        assert set(found["here"]) == {0.5}
        assert sorted(found["processes"]) == [0] * 4 + [1] * 4
