"""A small reader as the folder that it is shipped in."""

from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.support.reader_texts import TEMPLATE
from icorag_jax.backbones.templates import TEMPLATE as TEMPLATE_FILE
from icorag_jax.backbones.templates import write_template
from icorag_jax.lm.pretrained import LanguageModel, save_pretrained


def write_reader(folder: Path, reader: LanguageModel) -> None:
    """Writes a Hugging Face folder in bfloat16, with its template; one that is there stays."""
    if not folder.exists():
        parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), reader.parameters)
        save_pretrained(folder, LanguageModel(reader.config, parameters, reader.tokenizer))
    write_template(folder / TEMPLATE_FILE, TEMPLATE)
