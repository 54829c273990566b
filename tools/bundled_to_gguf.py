"""Write a GPT-2 checkpoint (by default the bundled model) as an f32 GGUF file, which llama.cpp's server can load.

    python tools/bundled_to_gguf.py model.gguf [--model FOLDER]

Needs the `gguf` package. f32, so that the server's log-probs differ from ours by rounding alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

BUNDLED = Path(__file__).resolve().parents[1] / "invert_fast" / "bundled"
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored [in, out]


def write_gguf(output: Path, folder: Path = BUNDLED) -> None:
    """Convert the GPT-2 checkpoint in `folder` (config.json, model.safetensors, tokenizer.json).

    Raises ValueError for another architecture or for a tensor GGUF has no name for.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "gpt2":
        raise ValueError(f"{folder} holds a {config['model_type']} model, expected gpt2: use llama.cpp's own converter")
    writer = gguf.GGUFWriter(output, "gpt2")
    writer.add_name("bundled")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
            continue  # causal masks of old checkpoints; the tied unembedding
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ValueError(f"{folder} has a tensor {name}, which GGUF's gpt2 has no name for")
        matrix = tensor.astype(np.float32)
        writer.add_tensor(known, np.ascontiguousarray(matrix.T) if name.endswith(_CONV1D) else matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, config: dict) -> None:
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="model.gguf to write")
    parser.add_argument("--model", type=Path, default=BUNDLED, metavar="FOLDER", help="GPT-2 checkpoint")
    args = parser.parse_args()
    write_gguf(args.output, args.model)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
