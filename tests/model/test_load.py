"""Checkpoints: what is loaded, what they are told apart by, and what is refused in one line."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from invert_fast import InputError, Inverter
from invert_fast.model.decoder import Decoder
from invert_fast.model.load import load

from ..families import FAMILIES, VOCAB, build, config, embedding_table, make, texts
from .refusals import one_line

ROOT = Path(__file__).resolve().parents[2]

# ---- which models


def test_encoder_decoders_are_refused():
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    )
    with pytest.raises(InputError) as error:
        Decoder(model)
    assert "encoder-decoder" in one_line(error)


def test_ids_past_the_tokenizer_are_no_candidates():
    decoder = Decoder(make("llama"), tokenizer=range(VOCAB - 7))
    assert decoder.usable_ids == VOCAB - 7
    assert decoder.log_probs(decoder.capture(torch.tensor(texts(33, 33))))[..., -7:].isneginf().all()


def test_without_a_tokenizer_text_is_refused_and_ids_work():
    decoder = Decoder(make("llama"))
    assert decoder.decode([1, 2]) is None
    with pytest.raises(InputError, match="tokenizer"):
        decoder.encode("text")


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    build("llama").save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def test_the_fingerprint_is_that_of_the_checkpoint_and_not_of_its_precision(checkpoint):
    prints = {dtype: Decoder(*load(checkpoint, dtype=dtype)).fingerprint() for dtype in ("float32", "bfloat16")}
    assert prints["float32"] == prints["bfloat16"] == Decoder(build("llama"), layer=1).fingerprint()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_tells_models_apart(family):
    model = build(family)
    before = Decoder(model).fingerprint()
    assert before.startswith(family)
    assert Decoder(build(family, seed=1)).fingerprint() != before
    embedding_table(model)[0, 0] += 1.0
    assert Decoder(model).fingerprint() != before


def test_load_gives_a_model_and_tokenizer_that_work(checkpoint):
    inverter = Inverter.from_pretrained(checkpoint, device="cpu")
    truth = ["w7 w8 w7", "w250"]
    assert [r.text for r in inverter.invert(inverter.capture(truth))] == truth


def damaged(checkpoint: Path, folder: Path, change: str) -> Path:
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    if change == "pickled":
        weights.unlink()
        torch.save(build("llama").state_dict(), folder / "pytorch_model.bin")
    elif change == "no config":
        (folder / "config.json").unlink()
    elif change == "config is not JSON":
        (folder / "config.json").write_text("{")
    elif change == "unknown family":
        (folder / "config.json").write_text('{"model_type": "nonesuch"}')
    elif change == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "weights of another shape":
        config("llama", width=32).save_pretrained(folder)
    elif change == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    elif change == "a file":
        shutil.rmtree(folder)
        folder.write_text("not a folder")
    elif change == "missing":
        shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        *("pickled", "no config", "config is not JSON", "unknown family", "weights cut short"),
        *("weights of another shape", "no tokenizer", "a file", "missing"),
    ],
)
def test_folders_that_cannot_be_loaded_are_refused_in_one_line(checkpoint, tmp_path, change):
    folder = damaged(checkpoint, tmp_path / "model", change)
    with pytest.raises(InputError) as error:
        load(folder)
    assert str(folder) in one_line(error)


def test_load_refuses_unknown_hub_ids_precisions_and_devices(checkpoint):
    for wrong in ({"name_or_path": "nobody/nothing"}, {"dtype": "float8"}, {"device": "abacus"}):
        with pytest.raises(InputError) as error:
            load(**{"name_or_path": checkpoint, **wrong})
        assert next(iter(wrong.values())) in one_line(error)


# ---- other containers


def test_a_gguf_file_is_the_checkpoint_it_was_made_of(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[test]'")
    write_gguf = runpy.run_path(str(ROOT / "tools" / "bundled_to_gguf.py"))["write_gguf"]
    write_gguf(tmp_path / "model.gguf")
    ours, theirs = Inverter.from_pretrained("bundled", device="cpu"), Inverter.from_pretrained(tmp_path / "model.gguf")
    assert ours.decoder.fingerprint() == theirs.decoder.fingerprint()
    text = "Meet me at nine by the old mill."
    (found,) = theirs.invert(ours.capture([text]))
    assert found.text == text
    assert found.certified
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "model.gguf").read_bytes()[:5000])
    with pytest.raises(InputError) as error:
        load(tmp_path / "cut.gguf")
    assert "could not be loaded" in one_line(error)


def test_a_model_that_sees_is_read_by_its_text_model(checkpoint, tmp_path):
    seeing = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = transformers.LlavaConfig(
        text_config=config("llama").to_dict(),
        vision_config={"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, **seeing},
        image_token_index=VOCAB - 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlavaForConditionalGeneration(settings).save_pretrained(tmp_path)
    for file in checkpoint.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    inverter = Inverter.from_pretrained(tmp_path, device="cpu")
    assert inverter.decoder.own is None
    truth = ["w7 w8 w7", "w250"]
    assert [r.text for r in inverter.invert(inverter.capture(truth))] == truth
