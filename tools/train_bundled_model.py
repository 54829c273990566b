"""Train the language model that ships inside the package (`--model bundled`), from plain text to safetensors.

    python tools/train_bundled_model.py --text-dir TEXT --output invert_fast/bundled --steps 5600

TEXT holds `train_books.txt.xz` and `train_web.jsonl.xz`; files named `*_eval*` are only ever scored, never trained on.
The model is a 4-layer, 256-wide GPT-2 (4.47 M parameters, tied embeddings, context 1,024) over its own byte-level BPE
of 4,096 tokens. Hidden matrices are trained with Muon, the rest with AdamW; every fourth batch is made of 1,024-token
sequences, so that every position is trained. The same seed, steps and thread count give the same model on one machine.
"""

import argparse
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 4096, 256, 4, 4, 1024
END = "<|endoftext|>"
BATCH_TOKENS, SHORT, WEB_SHARE = 8192, 256, 0.2
HELD_OUT_DOCUMENTS, HELD_OUT_BOOK_BYTES = 120, 400_000


def read_text(folder: Path) -> tuple[str, list[str]]:
    books = lzma.decompress((folder / "train_books.txt.xz").read_bytes()).decode()
    lines = lzma.decompress((folder / "train_web.jsonl.xz").read_bytes()).decode().splitlines()
    web = [json.loads(line)["text"] for line in lines]
    return books, web


def train_tokenizer(books: str, web: list[str]) -> Tokenizer:
    """GPT-2's scheme: byte alphabet, regex pre-tokeniser, merges by frequency; end-of-text has the last id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    stride = 4_000_000  # books outweigh the web text 18 to 1: take a slice of each 4 MB
    sample = [books[i : i + 400_000] for i in range(0, len(books), stride)] + web
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.add_special_tokens([END])
    if tokenizer.token_to_id(END) != VOCABULARY - 1:
        raise SystemExit(
            f"the text gave a vocabulary of {tokenizer.get_vocab_size()}, expected {VOCABULARY}: give more"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents in one stream, each followed by the end-of-text token."""
    end = tokenizer.token_to_id(END)
    rows = [np.array([*e.ids, end], np.uint16) for e in tokenizer.encode_batch(documents)]
    return np.concatenate(rows)


def new_model() -> GPT2LMHeadModel:
    end = VOCABULARY - 1
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=CONTEXT,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


class Batches:
    """Random windows of the token streams, a fixed share of them from the web text."""

    def __init__(self, books: np.ndarray, web: np.ndarray, seed: int):
        self.streams, self.rng = (books, web), np.random.default_rng(seed)

    def draw(self, length: int) -> torch.Tensor:
        rows = []
        for _ in range(BATCH_TOKENS // length):
            stream = self.streams[int(self.rng.random() < WEB_SHARE)]
            start = int(self.rng.integers(len(stream) - length))
            rows.append(stream[start : start + length])
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Next-token loss of each predicted position, `[B, T-1]` nats; bf16 products in training, fp32 in scoring."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=model.training):
        logits = model.lm_head(model.transformer(ids, use_cache=False).last_hidden_state[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


@torch.no_grad()
def score_stream(model: GPT2LMHeadModel, stream: np.ndarray, length: int, limit: int) -> torch.Tensor:
    """Per-position losses `[n, length-1]` of the first `limit` whole windows of a held-out stream."""
    n = min(limit, len(stream) // length)
    ids = torch.from_numpy(stream[: n * length].astype(np.int64)).view(n, length)
    device = next(model.parameters()).device
    return torch.cat([loss_of(model, part.to(device)).cpu() for part in ids.split(8)])


def report(model: GPT2LMHeadModel, tokenizer: Tokenizer, held: dict[str, np.ndarray], folder: Path) -> dict:
    """Losses in nats a token on text that was never trained on, by source and by position."""
    figures = {}
    for name, stream in held.items():
        losses = score_stream(model, stream, CONTEXT, 64)
        figures[name] = {
            "nats_per_token": round(losses.mean().item(), 4),
            "by_position": {
                f"{a}-{b - 1}": round(losses[:, a:b].mean().item(), 4)
                for a, b in ((0, 64), (64, 256), (256, 512), (512, 768), (768, 1023))
            },
        }
    if (folder / "c4_eval.jsonl").exists():  # scored only
        lines = (folder / "c4_eval.jsonl").read_text(encoding="utf-8").splitlines()
        documents = [json.loads(line)["text"] for line in lines]
        rows = [e.ids[:SHORT] for e in tokenizer.encode_batch(documents)]
        with torch.no_grad():
            losses = [loss_of(model, torch.tensor([row])).flatten() for row in rows if len(row) > 1]
        decoded = tokenizer.decode_batch([row[1:] for row in rows if len(row) > 1])
        total = torch.cat(losses).sum().item()
        figures["c4_unseen"] = {
            "nats_per_token": round(torch.cat(losses).mean().item(), 4),
            "bits_per_byte": round(total / math.log(2) / sum(len(d.encode()) for d in decoded), 4),
        }
    return figures


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, output: Path) -> None:
    """fp16 safetensors, and a tokenizer that needs no code of its own."""
    output.mkdir(parents=True, exist_ok=True)
    half = new_model()
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(output)
    (output / "generation_config.json").unlink(missing_ok=True)
    (output / "model.safetensors").chmod(0o644)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5600, help=f"optimiser steps of {BATCH_TOKENS} tokens")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile (half the speed)")
    parser.add_argument("--save-every", type=int, default=500, help="write the model so far every N steps")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    books, web = read_text(args.text_dir)
    order = np.random.default_rng(args.seed).permutation(len(web))
    held_web, web = [web[i] for i in order[:HELD_OUT_DOCUMENTS]], [web[i] for i in order[HELD_OUT_DOCUMENTS:]]
    held_books, books = books[-HELD_OUT_BOOK_BYTES:], books[:-HELD_OUT_BOOK_BYTES]
    tokenizer = train_tokenizer(books, web)
    pieces = [books[i : i + 1_000_000] for i in range(0, len(books), 1_000_000)]
    book_ids = np.concatenate([encode(tokenizer, [piece])[:-1] for piece in tqdm(pieces, desc="encode books")])
    web_ids = encode(tokenizer, web)
    held = {"web_held_out": encode(tokenizer, held_web), "books_held_out": encode(tokenizer, [held_books])}
    print(
        f"tokens: books {len(book_ids):,}, web {len(web_ids):,}; training on {args.steps * BATCH_TOKENS:,}", flush=True
    )

    model = new_model().to(args.device).train()
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and ".h." in n]
    rest = [p for n, p in model.named_parameters() if not (p.dim() == 2 and ".h." in n)]
    optimisers = [
        torch.optim.Muon(
            matrices, lr=args.learning_rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    train_loss = loss_of if args.no_compile else torch.compile(loss_of, dynamic=False)
    batches, start, running = Batches(book_ids, web_ids, args.seed), time.time(), 0.0
    bar = tqdm(range(args.steps), desc="train", mininterval=30)
    for step in bar:
        rate = args.learning_rate * min(1.0, (step + 1) / 100) * min(1.0, (1 - step / args.steps) / 0.6)
        ids = batches.draw(CONTEXT if step % 4 == 3 else SHORT).to(args.device)
        loss = train_loss(model, ids).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 99:
            bar.set_postfix(loss=f"{running:.3f}")
        if step % args.save_every == args.save_every - 1:
            save(model, tokenizer, args.output)
    save(model, tokenizer, args.output)

    final = GPT2LMHeadModel.from_pretrained(args.output, dtype=torch.float32).eval()  # score what ships
    figures = {
        "parameters": sum(p.numel() for p in final.parameters()),
        "steps": args.steps,
        "tokens": args.steps * BATCH_TOKENS,
        "seed": args.seed,
        "minutes": round((time.time() - start) / 60, 1),
        "training_mix_running_loss": round(running, 4),
        "held_out": report(final, tokenizer, held, args.text_dir),
    }
    (args.output / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
