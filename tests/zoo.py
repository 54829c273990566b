"""A tiny random model of every decoder-only family of transformers that one process can hold.

Their configurations are the families' own defaults, made small by the names that families share; where that is not
enough, a few settings of the family's own are below.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, WIDTH, BLOCKS, HEADS, POSITIONS, WINDOW = 300, 64, 3, 4, 128, 16
_SHARPER = 2.0

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dff", "ffn_hidden_size"), 2 * WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), HEADS),
    "num_key_value_heads": 2,
    "head_dim": WIDTH // HEADS,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), WIDTH // 2),
    **dict.fromkeys(("sliding_window", "attention_window_size"), WINDOW),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {  # attention over compressed keys: its heads have sizes of their own
    "head_dim": None,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": HEADS,
}
_GROUPS = {"n_group": 1, "topk_group": 1}
_MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    **_MIXED,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16, "mamba_expand": 2}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _LATENT | _GROUPS,
    "axk2": _LATENT | _GROUPS,
    "bailing_hybrid": _LATENT  # of all it takes by far the most time: heads are what it costs
    | _GROUPS
    | _MIXED
    | {"head_dim": 8, "num_experts": 4, "num_attention_heads": 2, "num_key_value_heads": 2},
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": _LATENT | _GROUPS,
    "deepseek_v3": _LATENT | _GROUPS,
    "dots1": _GROUPS | {"n_shared_experts": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 128, "mamba_n_groups": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "glm4_moe_lite": _LATENT | _GROUPS,
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": WINDOW},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": _MAMBA | {"layer_types": ["mamba", "attention", "mamba"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": _LATENT | _MIXED | {"linear_head_dim": 16, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": _LATENT
    | {
        "head_dim": 16,
        "qk_head_dim": 32,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 1,
        "moe_topk": 2,
        "num_layers": BLOCKS,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "chunk_size": 16, "n_groups": 1},
    "minicpm3": _LATENT,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16},
    "xlstm": {"qk_dim_factor": 1.0, "chunk_size": 16},
    "youtu": _LATENT,
    "zamba": {"layers_block_type": ["hybrid", "mamba", "hybrid"]},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "n_mamba_heads": 4,
        "mamba_d_state": 16,
        "chunk_size": 16,
        "mamba_ngroups": 1,
    },
}

FAMILIES = (
    *("afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba", "biogpt", "bitnet", "bloom"),
    *("codegen", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "deepseek_v3"),
    *("deepseek_v4", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon"),
    *("falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text"),
    *("glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese"),
    *("gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid"),
    *("granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax"),
    *("inkling_text", "jais2", "jamba", "jetmoe", "kimi_linear", "kolibri1", "laguna", "lfm2", "lfm2_moe", "lfm3"),
    *("llama", "llama4_text", "longcat_flash", "mamba", "mamba2", "mellum", "mimo_v2_flash", "minicpm3", "minimax"),
    *("minimax_m2", "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat"),
    *("nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon"),
    *("phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"),
    *("qwen3_next", "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2"),
    *("vaultgemma", "xglm", "xlstm", "youtu", "zamba", "zamba2"),
)
"""What is left out is no decoder of text alone, takes gigabytes at its smallest, or is none of transformers' own."""


def config(family: str) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[family]
    default, own = kind(), _OWN.get(family, {})
    names = {name: value for name, value in _SMALL.items() if hasattr(default, name)} | own
    return kind(**{name: value for name, value in names.items() if value is not None})


def build(family: str) -> PreTrainedModel:
    """Sharper than a fresh initialisation, so that texts have clearly different states. Deterministic."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(_SHARPER)
    table = model.get_input_embeddings().weight
    table[0] = table[1].flip(0)  # transformers makes the row of the padding token zero
    return model


def others() -> set[str]:
    """Families of causal language models that transformers has and that are not here."""
    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES)
