"""The adapter: the twin equals the model at every layer, the model stays as it was, and what is refused says why."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from invert_fast import InputError, Inverter, PriorOrder
from invert_fast.model.decoder import Decoder
from invert_fast.model.layer import Layer
from invert_fast.model.load import load
from invert_fast.model.prefix import PrefixCall

from ..families import BLOCKS, FAMILIES, UNTESTED, VOCAB, build, config, embedding_table, exact, make, texts

LAYERS = [*range(-BLOCKS - 1, BLOCKS + 1), *(f"block:{k}" for k in range(BLOCKS)), "final_norm", "embeddings"]
families = pytest.mark.parametrize("family", FAMILIES)
ids = torch.tensor(texts(33, 33))
small = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def twin(decoder: Decoder, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    return decoder.run(decoder.embed(ids), positions, PrefixCall(causal=True))


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == BLOCKS)


def hooks_of(model: nn.Module) -> list[list]:
    return [[*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for m in model.modules()]


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# ---- the twin


@pytest.mark.parametrize("family", [*FAMILIES, *UNTESTED])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_twin_equals_the_models_own_forward_pass_at_every_layer(family, layer):
    decoder = Decoder(make(family), layer=layer, insist=True)
    torch.testing.assert_close(twin(decoder, ids), decoder.capture(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *UNTESTED])
def test_block_outputs_are_what_a_hook_on_the_block_sees(family):
    model, seen = make(family), []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks_of(model)
    ]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert not torch.allclose(seen[-1], hidden[-1], rtol=1e-2), "the last entry has the final norm"
    for k, expected in enumerate(seen):
        decoder = Decoder(model, layer=f"block:{k}", insist=True)
        torch.testing.assert_close(decoder.capture(ids), expected, rtol=0, atol=0)
        torch.testing.assert_close(twin(decoder, ids), expected, rtol=1e-5, atol=1e-5)
    for index, expected in enumerate(hidden):
        torch.testing.assert_close(Decoder(model, layer=index, insist=True).capture(ids), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_models_own_attention_implementation_does_not_matter(implementation):
    model = build("llama")
    model.set_attn_implementation(implementation)
    decoder = Decoder(model)
    torch.testing.assert_close(twin(decoder, ids), decoder.capture(ids), rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == implementation


@families
def test_the_model_is_left_as_it_was(family):
    model = build(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(ids, output_hidden_states=True).logits  # transformers' own hooks are made here
    hooks, settings = hooks_of(model), (model.config.to_dict(), model.generation_config.to_dict())
    implementation, modules = model.config._attn_implementation, [type(m) for m in model.modules()]
    random = torch.get_rng_state()

    for layer in ("final_norm", f"block:{BLOCKS - 1}", "block:0"):
        inverter = Inverter(model, layer=layer)
        states = inverter.capture(texts(6, 1))
        inverter.invert(states, PriorOrder())
    Inverter(model).invert(Inverter(model).capture(texts(6)))  # fits a lens, which lets the model write

    assert (model.config.to_dict(), model.generation_config.to_dict()) == settings
    assert model.config._attn_implementation == implementation
    assert model.config.num_hidden_layers == BLOCKS == len(blocks_of(model))
    assert [type(m) for m in model.modules()] == modules
    assert hooks_of(model) == hooks
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(torch.get_rng_state(), random), "the global random generator moved"


def test_the_twin_shares_every_parameter():
    model = make("llama")
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in Decoder(model).body.parameters()} <= own


def test_the_twin_computes_gpt2s_activation_in_one_fused_operation_and_leaves_others_alone():
    fused, kept = Decoder(make("gpt2")), Decoder(make("llama"))
    assert {type(m).__name__ for m in fused.model.modules()} >= {"NewGELUActivation"}
    assert not {type(m).__name__ for m in fused.body.modules()} & {"NewGELUActivation"}
    kinds = {type(m).__name__.removeprefix("Packed") for m in kept.body.modules()} - {"Identity"}  # see product.py
    assert kinds <= {type(m).__name__ for m in kept.model.modules()}


def test_log_probs_are_those_of_the_model():
    model = make("qwen3")
    expected = model(ids).logits.log_softmax(-1)
    for layer in ("final_norm", f"block:{BLOCKS - 1}"):
        decoder = Decoder(model, layer=layer)
        torch.testing.assert_close(decoder.log_probs(decoder.capture(ids)), expected, rtol=1e-5, atol=1e-5)


# ---- layer names


def test_every_name_of_a_layer_has_one_canonical_form():
    for index in range(BLOCKS + 1):
        names = {index, str(index), f" {index} ", f"+{index}", index - BLOCKS - 1, str(index - BLOCKS - 1)}
        canonical = "embeddings" if not index else "final_norm" if index == BLOCKS else f"block:{index - 1}"
        assert {Layer(name, BLOCKS).name for name in {*names, canonical}} == {canonical}
    last = Layer(f"block:{BLOCKS - 1}", BLOCKS)
    assert (last.depth, last.normed, last.name) == (BLOCKS, False, f"block:{BLOCKS - 1}")
    assert [name for name in LAYERS if Layer(name, BLOCKS).near_head] == [-1, BLOCKS, last.name, "final_norm"]


@pytest.mark.parametrize(
    "name",
    [BLOCKS + 1, -BLOCKS - 2, f"block:{BLOCKS}", "block:-1", "block:", "block:x", "", "norm", "1.0", 1.5, None, "--1"],
)
def test_layers_that_are_not_there_are_refused_by_name(name):
    with pytest.raises(InputError) as error:
        Decoder(make("gpt2"), layer=name)
    assert f"'{name}'" in one_line(error)
    assert f"block:{BLOCKS - 1}" in one_line(error)


# ---- which models


def test_untested_families_are_refused_by_name_and_tried_when_asked():
    model = make(UNTESTED[0])
    with pytest.raises(InputError) as error:
        Decoder(model)
    assert "'gemma2'" in one_line(error)
    assert "insist=True" in one_line(error)
    for layer in (-1, "block:1"):
        inverter = Inverter(model, layer=layer, insist=True)
        truth = texts(1, 12, 30)
        assert exact(inverter.invert(inverter.capture(truth)), truth)


@pytest.mark.parametrize(
    "config",
    [
        transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),  # own attention code
        transformers.CodeGenConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
        transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),  # no attention
        transformers.BertConfig(is_decoder=False, **small),  # attends both ways
        transformers.GptOssConfig(num_key_value_heads=2, head_dim=8, num_local_experts=4, **small),  # attends to sinks
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("layer", [-1, 1])
def test_families_that_attend_in_their_own_way_are_refused_by_name_even_when_insisted_on(config, layer):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(4.0)
    with pytest.raises(InputError) as error:
        Inverter(model, layer=layer, insist=True)
    assert f"'{config.model_type}'" in one_line(error)


def test_encoder_decoders_are_refused():
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    )
    with pytest.raises(InputError) as error:
        Decoder(model, insist=True)
    assert "encoder-decoder" in one_line(error)


def test_ids_past_the_tokenizer_are_no_candidates():
    decoder = Decoder(make("llama"), tokenizer=range(VOCAB - 7))
    assert decoder.usable_ids == VOCAB - 7
    assert decoder.log_probs(decoder.capture(ids))[..., -7:].isneginf().all()


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


@families
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
