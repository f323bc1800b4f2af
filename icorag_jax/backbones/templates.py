"""The wording of a backbone's prompts, as a file beside its weights or by default."""

import dataclasses
import json
from pathlib import Path

import tokenizers

from icorag_jax.data.prompts import PromptTemplate
from icorag_jax.files import write_atomically
from icorag_jax.stored_tensors import CheckpointError, read_json

TEMPLATE = "template.json"
_INSTRUCTION = "Answer the question with a few words from the passages."


def default_template(tokenizer: tokenizers.Tokenizer) -> PromptTemplate:
    """A wording for models that were not trained on one.

    It begins with the token that the tokenizer puts before every text, if it has one; that a
    model's settings name such a token does not mean that its texts began with it.

    Args:
        tokenizer: of the model.
    """
    encoded = tokenizer.encode("a")
    start = encoded.tokens[0] if encoded.special_tokens_mask[0] else ""
    return PromptTemplate(f"{start}{_INSTRUCTION}")


def read_template(path: Path) -> PromptTemplate:
    """Reads a file of `write_template`.

    Raises:
        CheckpointError: the file is missing or malformed; the message says how.
    """
    fields = read_json(path, dict)
    names = [field.name for field in dataclasses.fields(PromptTemplate)]
    if sorted(fields) != sorted(names) or not all(isinstance(v, str) for v in fields.values()):
        raise CheckpointError(f"{path} must have the texts {', '.join(names)}, and no others")
    try:
        return PromptTemplate(**fields)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_template(path: Path, template: PromptTemplate) -> None:
    """Writes a wording whole or not at all, as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(dataclasses.asdict(template), indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode())
