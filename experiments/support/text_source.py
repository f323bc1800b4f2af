"""The texts whose embeddings are a feature distribution, and their encoder."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icorag_jax.data.texts import default_texts
from icorag_jax.retrieval.encoder import (
    SentenceEncoder,
    embed,
    find_default_encoder,
    load_encoder,
)

# A passage's first words say what it is about; all of it would take several times as long.
_MAX_LENGTH = 64


class TextSource(NamedTuple):
    """What is to be embedded, by which encoder.

    Attributes:
        texts: questions and passages, real or generated.
        encoder: reads them.
        provenance: where both came from, with fingerprints, in plain values.
    """

    texts: list[str]
    encoder: SentenceEncoder
    provenance: dict[str, str | int]


def find_text_source(count: int, seed: int, d: int) -> TextSource:
    """The default texts and encoder, read whole: what is wrong with them shows here.

    Args:
        count: how many texts, at least `2 d`, as either half has to span `d` directions.
        seed: of their draw.
        d: size of the features to be made of them.

    Raises:
        ValueError, OSError: texts or encoder are missing, damaged or too few for `d` features.
    """
    if count < 2 * d:
        raise ValueError(f"{d} features of text need at least {2 * d} texts, got texts={count}")
    texts, source = default_texts(count, seed)
    folder = find_default_encoder()
    encoder = load_encoder(folder)
    if d > encoder.config.hidden_size:
        raise ValueError(
            f"the encoder's embeddings have {encoder.config.hidden_size} dimensions, "
            f"too few for features={d}"
        )
    provenance = {
        "source": source,
        "texts": count,
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        "encoder": folder.parent.name,
        "encoder_sha256": _fingerprint(folder),
        "max_length": _MAX_LENGTH,
    }
    return TextSource(texts, encoder, provenance)


def embed_source(source: TextSource) -> dict[str, np.ndarray]:
    """`embeddings` `[texts, width]` and their `provenance` as JSON text; shows a progress bar."""
    found = embed(
        source.encoder, source.texts, batch_size=32, max_length=_MAX_LENGTH, progress=True
    )
    return {"embeddings": found, "provenance": np.asarray(json.dumps(source.provenance))}


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
