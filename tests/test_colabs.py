"""The notebooks run from first cell to last; their own asserts hold the claims."""

import os
import re
from pathlib import Path

import nbformat
import pytest
import small_backbones
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient

from icorag_jax.rag.batches import BatchConfig

COLABS = Path(__file__).parent.parent / "colabs"
NOTEBOOKS = ("exact_regime", "boundary", "answer_with_updates", "train_an_updater")
CELL_TIMEOUT = 300  # seconds

# What a notebook must have printed, beside passing its asserts: numbers of the theory.
PRINTED = {
    "exact_regime": (
        r"best eta/N 0\.606, its loss 0\.2062, predicting zero 0\.4167",
        r"both, block heads +float64 \d\.\de-1\d +float32 \d\.\de-0[567]",
        r"seed 2: loss 0\.\d+ \(step 0\.\d+\), sensitivity cosine 0\.9[89]",
    ),
    "boundary": (
        r"linear, 3 layers: largest relative error of an episode, on any law, \d\.\de-0[567]",
        r"spread over laws: 0\.00\d+ at T = 1000, 0\.[1-9]\d* at T = 0\.01",
        r"power_law +preconditioning gains +[1-9]\d\.\d%",
    ),
    "answer_with_updates": (
        r"3 layers, the interface acts from layer 1 on",
        r"frozen:  '.*'\nupdated: '.*'\nright:   '\w",
        r"weights, updated: sum 0\.\d+",
        r"untrained is frozen: True",
        r"updated: exact match 0\.00 of 7 questions",
    ),
    "train_an_updater": (
        r"2 devices, [\d,]+ parameters",
        r"6 training questions, 3 held out",
        r"each batch is split over 2 devices",
        r"[1-6] of 6 training questions have a passage with an answer",
        r"updater: loss of answers \d+\.\d+ at the end",
        r"updater: exact match 0\.00 of 3 questions",
        r"saved: method\.json, method\.safetensors",
    ),
}
# Of notebooks on language models: settings that take the place of their own.
SMALL = {
    "answer_with_updates": """
BACKBONE, METHOD, QUESTIONS = "{folder}/backbone", "{folder}/method", 1
""",
    "train_an_updater": """
BACKBONE, OUT = "{folder}/backbone", "{folder}/trained"
FAMILIES, TRAIN, HELD_OUT = ("single_fact", "bridge", "conflict"), 2, 1
SIZES = BatchConfig(passages=3, evidence_tokens=200, question_tokens=160, answer_tokens=4)
INTERFACE = {{"bound": 1.5, "pools": 2, "pool_features": 3, "rank": 2}}
LEARNING = LearningConfig(
    selection_steps=1, selection_batch=4, selection_rate=1e-2,
    steps=3, batch=4, learning_rate=1e-2, weight_decay=0.0, bias_penalty=0.1, selection_weight=0.5,
    seed=0, checkpoint_every=2,
)
""",
}


def read(name):
    return nbformat.read(COLABS / f"{name}.ipynb", as_version=4)


def read_small(name, folder):
    """A notebook as the tests run it: with a cell of small settings after its own, if it has any.

    The folder gets a backbone and a method of random weights.
    """
    notebook = read(name)
    if name in SMALL:
        model = small_backbones.write_backbone(folder / "backbone")
        sizes = BatchConfig(passages=4, evidence_tokens=200, question_tokens=160, answer_tokens=4)
        small_backbones.write_method(folder / "method", model, sizes=sizes)
        own = [cell.metadata.get("tags") == ["parameters"] for cell in notebook.cells]
        settings = nbformat.v4.new_code_cell(SMALL[name].format(folder=folder))
        notebook.cells.insert(own.index(True) + 1, settings)
    return notebook


@pytest.fixture
def jupyter(tmp_path, monkeypatch):
    """A kernel that is this interpreter on CPU, and folders that are nobody else's.

    Its XLA flags are those of the tests (`conftest.py`), which it inherits.
    """
    write_kernel_spec(str(tmp_path / "data" / "kernels" / "python3"))
    for variable, folder in {
        "JUPYTER_PATH": "data",  # searched before the folders of the user and the system
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }.items():
        monkeypatch.setenv(variable, str(tmp_path / folder))
    # Figures become outputs, whatever backend the tests run with.
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # Progress bars of text will do.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "train_an_updater" else name
        for name in NOTEBOOKS
    ],
)
def test_notebook_runs(name, jupyter, tmp_path, monkeypatch):
    notebook = read_small(name, tmp_path / "small")
    if name == "train_an_updater":
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(jupyter)}},
    )
    client.execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) >= 2

    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "CpuDevice" in printed
    assert "Warning" not in printed
    for pattern in PRINTED[name]:
        assert re.search(pattern, printed), f"{pattern!r} not in:\n{printed}"
    assert not os.listdir(jupyter), "a notebook leaves no files behind"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    # The first code cell installs in Colab alone, and asks for full float32 products.
    assert 'if "google.colab" in sys.modules:' in code[0].source
    assert '"jax_default_matmul_precision", "float32"' in code[0].source


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in COLABS.glob("*.ipynb")) == sorted(NOTEBOOKS)
