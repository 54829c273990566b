"""TransformerLens: hooks of real models, of both kinds, folded and centred, are read for what they are."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

from invert_fast import InputError, Inverter
from invert_fast.integrations.needs import TRANSFORMER_LENS

from .needed import needed
from .page import PASSWORD, ROOT

needed(TRANSFORMER_LENS)
BEHIND_BOS = f"<|endoftext|>{PASSWORD}"  # TransformerLens puts it before every text
OLD = Path(sys.prefix) / "transformer_lens_3"  # the last version with HookedTransformer, beside the newest


def test_the_example_undoes_folding_and_centring(example):
    names = example("TransformerLens")
    assert (names["tapped"].layer, names["tapped"].reading.name) == ("block:2", "centered")
    assert names["recovery"].certified
    assert names["recovery"].text == BEHIND_BOS


def test_a_bridge_as_it_is_and_what_is_refused():
    from transformer_lens.model_bridge import TransformerBridge

    from invert_fast.integrations.transformer_lens import states_of

    inverter = Inverter.from_pretrained("bundled")
    held = copy.deepcopy(inverter.decoder.model)
    options = {"tokenizer": inverter.decoder.tokenizer, "device": "cpu"}
    model = TransformerBridge.boot_transformers("gpt2", hf_model=held, **options)
    _, cache = model.run_with_cache(PASSWORD)
    tapped = states_of(cache, "ln_final.hook_out")
    assert (tapped.layer, tapped.reading.name) == ("final_norm", "")
    (found,) = tapped.invert(inverter)
    assert (found.certified, found.text) == (True, BEHIND_BOS)
    places = {
        ("resid_pre", 0): "embeddings",
        ("resid_pre", 3): "block:2",
        ("resid_post", 3): "block:3",
        "ln_final.hook_normalized": "block:3",
    }
    assert {hook: states_of(cache, hook).layer for hook in places} == places
    refused = {
        "blocks.1.hook_attn_out": "a part of what a block adds",
        "blocks.1.hook_resid_mid": "take the block's hook_resid_post",
        "hook_embed": "take blocks.0.hook_resid_pre",
        "blocks.9.hook_resid_post": "this cache has no blocks.9.hook_resid_post",
    }
    for hook, reason in refused.items():
        with pytest.raises(InputError, match=reason):
            states_of(cache, hook)
    with pytest.raises(InputError, match=r"a TransformerBridge has taken this model over"):
        tapped.invert(held, inverter.decoder.tokenizer)


HOOKED = f"""
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from invert_fast import Inverter
from invert_fast.integrations.transformer_lens import states_of

inverter = Inverter.from_pretrained("bundled")
inverter.decoder.tokenizer.pad_token = inverter.decoder.tokenizer.eos_token
config = HookedTransformerConfig(
    n_layers=4, d_model=256, n_ctx=1024, d_head=64, n_heads=4, d_vocab=4096, d_mlp=1024, act_fn="gelu_new",
    normalization_type="LN", original_architecture="GPT2LMHeadModel", device="cpu",
)
model = HookedTransformer(config, inverter.decoder.tokenizer)
model.load_and_process_state_dict(convert_gpt2_weights(inverter.decoder.model, config))
_, cache = model.run_with_cache({PASSWORD!r})
for hook in (("resid_post", 2), "ln_final.hook_normalized"):
    tapped = states_of(cache, hook)
    (found,) = tapped.invert(inverter)
    print(tapped.layer, tapped.reading.name, found.certified, found.text, sep="|")
"""


@pytest.mark.skipif(
    not OLD.is_dir(), reason=f"there is no {OLD}: `make test-integrations` puts TransformerLens 3 there"
)
def test_a_hooked_transformer_folded_and_centred(apart):
    assert apart(HOOKED, OLD).splitlines() == [
        f"block:2|centered|True|{BEHIND_BOS}",
        f"block:3|centered unit|True|{BEHIND_BOS}",
    ]
    assert ROOT.is_dir()
