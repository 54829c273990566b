"""Encoder-decoders that an inverter can have as its body: a tiny one from random weights, or a pretrained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import InputError
from .settings import LARGEST, Architecture

BODIES = ("t5", "mt5", "bart")


def tiny_config(vocab_size: int, how: Architecture) -> dict[str, Any]:
    """A T5 whose vocabulary is the target's and two ids more: padding (also the start) and the end."""
    return {
        "model_type": "t5",
        "vocab_size": vocab_size + 2,
        "d_model": how.width,
        "d_kv": how.width // how.heads,
        "d_ff": how.feed_forward,
        "num_layers": how.layers,
        "num_decoder_layers": how.decoder_layers,
        "num_heads": how.heads,
        "dropout_rate": how.dropout,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "pad_token_id": vocab_size,
        "decoder_start_token_id": vocab_size,
        "eos_token_id": vocab_size + 1,
    }


def from_config(config: dict[str, Any]):
    """An encoder-decoder with random weights from a config as Hugging Face writes it; InputError for any other kind
    of model, or for sizes that no inverter has."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    kind = config.get("model_type")
    if kind not in BODIES:
        raise InputError(f"the body is '{kind}', expected one of {', '.join(BODIES)}: an encoder-decoder")
    for name, value in config.items():
        if isinstance(value, int) and value > (LARGEST if name != "vocab_size" else 2**20):
            raise InputError(f"the body's config has {name} = {value}, expected at most {LARGEST}")
    rest = {name: value for name, value in config.items() if name not in ("model_type", "auto_map", "architectures")}
    try:
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **rest))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"no {kind} can be built from that config ({' '.join(str(error).split())[:120]})") from error


def load_body(name: str):
    """(model, tokenizer) of a pretrained encoder-decoder: safetensors only, no remote code."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    local = Path(name).is_dir()
    if not local and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise InputError(f"{name} does not exist, expected 'tiny', a local folder or the name of an encoder-decoder")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        if config.model_type not in BODIES:
            raise InputError(f"the body {name} is '{config.model_type}', expected one of {', '.join(BODIES)}")
        body = AutoModelForSeq2SeqLM.from_pretrained(
            name, config=config, use_safetensors=True, trust_remote_code=False, local_files_only=local
        )
        return body, load_tokenizer(name)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the body {name} cannot be loaded ({' '.join(str(error).split())[:160]}): give a local folder with "
            "config.json, model.safetensors and a tokenizer, or --body tiny to start from random weights"
        ) from error


def load_tokenizer(name: str):
    """The tokenizer of a pretrained body; InputError when it is not there."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=Path(name).is_dir())
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the tokenizer of {name} cannot be loaded ({' '.join(str(error).split())[:120]}): the folder or name that "
            "the inverter was trained with must still be there"
        ) from error
