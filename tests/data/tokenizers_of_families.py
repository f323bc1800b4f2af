"""Small tokenizers laid out as those of the language model families are, trained here."""

import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

# How Llama 3 and Qwen split text before byte-level BPE; Qwen takes digits one by one.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = [
    "The cat sat on the mat. Who wrote the Iliad? Homer's epic, in 1984.\n\nQuestion: where?",
    "naïve café, 東京 and 大阪, 🎉 emoji 👩‍🚀 with \u0301 marks; title: text\tand   spaces",
] * 20

FAMILIES = ("llama2", "mistral", "llama3", "qwen2", "qwen3")


@functools.cache
def make_tokenizer(family: str) -> tokenizers.Tokenizer:
    """The tokenizer of a family, with its control tokens."""
    return _sentencepiece(family) if family in ("llama2", "mistral") else _byte_level(family)


def beginning(family: str) -> str:
    """The token that begins a text, if the family has one."""
    return {"llama2": "<s>", "mistral": "<s>", "llama3": "<|begin_of_text|>"}.get(family, "")


def _byte_level(family: str) -> tokenizers.Tokenizer:
    """Byte-level BPE; that of Llama 3 takes known words whole, those of Qwen normalize to NFC."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    if family != "llama3":
        tokenizer.normalizer = normalizers.NFC()
    digits = "{1,3}" if family == "llama3" else ""
    split = tokenizers.Regex(_SPLIT.format(digits=digits))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if family == "llama3":
        tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="<|begin_of_text|> $A",
                    special_tokens=[
                        (name := "<|begin_of_text|>", tokenizer.token_to_id(name)),
                    ],
                ),
            ]
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if family == "qwen3":
        # Control tokens that the checkpoint does not call special.
        tokenizer.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return tokenizer


def _sentencepiece(family: str) -> tokenizers.Tokenizer:
    """BPE with byte fallback; Llama 2 marks spaces by a normalizer, Mistral before splitting."""
    control = ["<unk>", "<s>", "</s>"]
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        [text.replace("🎉", "") for text in _TEXT],
        trainers.BpeTrainer(
            vocab_size=450, special_tokens=[*control, *every_byte], show_progress=False
        ),
    )
    # Bytes are tokens of the model and not added ones, in a checkpoint.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in control]
    state["pre_tokenizer"] = None
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    if family == "llama2":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer
