"""What makes up a decoder: sizes, biases, norms, windows and rotary embeddings.

The four families differ in these settings alone; `icorag_jax.lm.config_files` has their names for
them in a checkpoint's `config.json`.
"""

import dataclasses
import math
from typing import Literal, get_args

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclasses.dataclass(frozen=True)
class DefaultRotary:
    """Rotary embeddings as they were trained.

    Attributes:
        rope_theta: longest wavelength, about: pair i of d turns by `rope_theta^(-2 i / d)` radians
            a position.
    """

    rope_theta: float


@dataclasses.dataclass(frozen=True)
class LinearRotary(DefaultRotary):
    """Positions divided by a factor.

    Attributes:
        factor: by how much the context grows.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRotary(DefaultRotary):
    """NTK scaling, with a base that grows with the text beyond the length that was trained.

    Attributes:
        factor: by how much the context grows.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rotary(DefaultRotary):
    """Long wavelengths divided by a factor, short ones kept, a ramp between; Llama 3.1.

    Attributes:
        factor: what long wavelengths grow by.
        low_freq_factor: wavelengths above `original_max_position_embeddings / low_freq_factor`
            are long.
        high_freq_factor: those below `original_max_position_embeddings / high_freq_factor` are
            short.
        original_max_position_embeddings: tokens in the longest text that was trained.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnRotary(DefaultRotary):
    """YaRN: slow pairs interpolated, fast ones kept, and attention made sharper (Peng et al. 2023).

    Attributes:
        factor: by how much the context grows.
        original_max_position_embeddings: tokens in the longest text that was trained.
        attention_factor: scale of the rotated queries and keys; from `factor` if None.
        beta_fast: pairs that turn more often than this over the original context are kept.
        beta_slow: those that turn less often than this are interpolated in full.
        mscale: with `mscale_all_dim`, how `attention_factor` follows from `factor`.
        mscale_all_dim: see `mscale`.
        truncate: round the ends of the ramp between fast and slow to whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


Rotary = DefaultRotary | LinearRotary | DynamicRotary | Llama3Rotary | YarnRotary


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder, under the names that `config.json` has where there is one.

    Attributes:
        family: whose tensor names and settings a checkpoint has.
        vocab_size: tokens in the vocabulary.
        hidden_size: `width`, features of a token.
        intermediate_size: features inside an MLP.
        num_hidden_layers: `layers`.
        num_attention_heads: `heads`.
        num_key_value_heads: `kv_heads`, each shared by `heads / kv_heads` queries.
        head_dim: features of a head, even.
        max_position_embeddings: tokens in the longest text that needs no stretched positions beyond
            what it was trained for; see `context`.
        rms_norm_eps: added to mean squares.
        tie_word_embeddings: the output projection is the transposed embedding.
        rotary: rotary position embeddings.
        query_key_value_bias: queries, keys and values have biases.
        attention_output_bias: so has the projection after attention.
        mlp_bias: so have the projections of the MLP.
        query_key_norm: queries and keys are normalized, each head on its own.
        windows: for each layer, how many positions back a token sees, itself included; None for
            all.
        eos_token_ids: tokens that end a text.
        bos_token_id: the token that starts one.
        pad_token_id: the token that fills a row elsewhere; here padding is told by its position.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    rotary: Rotary
    query_key_value_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    query_key_norm: bool
    windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None

    def __post_init__(self):
        """Checks that the settings fit together.

        Raises:
            ValueError: they do not; the message has everything that is wrong.
        """
        if problems := self._problems():
            raise ValueError("; ".join(problems))

    @property
    def context(self) -> int:
        """Tokens in the longest text, answer included.

        With linear or dynamic scaling `max_position_embeddings` counts texts as they were trained,
        with llama3 as they may be now, with yarn either. (A checkpoint with linear scaling that
        counts longer texts already gets more room than it was trained for.)
        """
        rotary, tokens = self.rotary, self.max_position_embeddings
        if isinstance(rotary, LinearRotary | DynamicRotary):
            return int(tokens * rotary.factor)
        if isinstance(rotary, YarnRotary):
            return max(tokens, int(rotary.original_max_position_embeddings * rotary.factor))
        return tokens

    def _problems(self) -> list[str]:
        problems = []
        if self.family not in get_args(Family):
            problems.append(f"family must be one of {get_args(Family)}, got {self.family!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and not 0 < value < math.inf:
                problems.append(f"{field.name} must be above 0, got {value}")
        for field in dataclasses.fields(self.rotary):
            value = getattr(self.rotary, field.name)
            if value is not None and not isinstance(value, bool) and not 0 < value < math.inf:
                problems.append(f"{field.name} must be above 0, got {value}")
        if problems:
            return problems
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim % 2:
            problems.append(f"head_dim must be even, got {self.head_dim}")
        if len(self.windows) != self.num_hidden_layers:
            problems.append(f"{len(self.windows)} windows for {self.num_hidden_layers} layers")
        problems += [f"a window must be above 0, got {w}" for w in self.windows if (w or 1) < 1]
        for token in (*self.eos_token_ids, self.bos_token_id, self.pad_token_id):
            if token is not None and not 0 <= token < self.vocab_size:
                problems.append(f"token {token} is not in a vocabulary of {self.vocab_size}")
        return problems
