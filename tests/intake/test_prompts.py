"""Captures are made as the model's own use makes them, and the printed Hugging Face call gives the same states."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from invert_fast import InputError, Inverter
from invert_fast.cli.main import main
from invert_fast.intake.prompts import hugging_face_call, special_words
from invert_fast.model.load import load
from invert_fast.storage.prompts import read_chats, read_prompts

from ..families import VOCAB, Tokenizer, make

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = [{"role": "user", "content": "Where is the key?"}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "Under the mat."}]


@pytest.fixture(scope="module")
def parts():
    """The bundled model with a tokenizer that puts a BOS before every text and writes chats."""
    model, tokenizer = load("bundled")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


@pytest.fixture(scope="module")
def inv(parts) -> Inverter:
    return Inverter(*parts)


def refused(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def test_a_text_begins_as_the_tokenizer_begins_it(inv, parts):
    text, bos = "The key is under the mat.", parts[1].bos_token_id
    whole, plain = inv.capture([text])[0], inv.capture([text], special=False)[0]
    assert len(whole) == len(plain) + 1
    assert inv.encode(text, special=True) == [bos, *inv.encode(text)] == parts[1](text)["input_ids"]
    (found,) = inv.invert(whole)
    assert found.certified
    assert found.text == "<|endoftext|>" + text
    assert f"<|endoftext|> ({bos})" in special_words(inv.decoder, True)
    assert "without <|endoftext|>" in special_words(inv.decoder, False)
    assert "adds none" in special_words(Inverter.from_pretrained("bundled").decoder, True)


def test_a_chat_is_written_by_its_template(inv):
    states = inv.capture([CHAT, ANSWERED])
    assert [len(s) for s in inv.capture(CHAT)] == [len(states[0])]
    assert [r.text for r in inv.invert(states)] == [
        "[user] Where is the key?\n[assistant] ",
        "[user] Where is the key?\n[assistant] Under the mat.\n",
    ]


@pytest.mark.parametrize("layer", ["embeddings", "block:1", "block:3", "final_norm"])
def test_the_call_that_is_printed_gives_the_same_states(parts, layer):
    inv, (model, tokenizer) = Inverter(*parts, layer=layer), parts
    for given, special, cut in (
        ("The key", True, None),
        ("The key", False, 1),
        (CHAT, True, None),
        (ANSWERED, True, 9),
    ):
        names = {"model": model, "tokenizer": tokenizer, "text": given, "messages": given}
        exec("\n".join(hugging_face_call(inv.decoder, special, not isinstance(given, str), cut)), names)
        (own,) = inv.capture([given], special=special, max_tokens=cut)
        torch.testing.assert_close(names["states"], own.hidden, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_captured_says_why(inv):
    plain = Inverter(make("gpt2"), Tokenizer(VOCAB))
    assert "no chat template" in refused(lambda: plain.capture([CHAT]))
    assert "no tokenizer" in refused(lambda: Inverter(make("gpt2")).capture([CHAT]))
    assert "roles must alternate" in refused(lambda: inv.capture([[{"role": "judge", "content": ""}]]))
    assert "item['messages']" in refused(lambda: inv.capture([{"messages": CHAT}]))
    assert "NoneType" in refused(lambda: inv.capture([None]))


def test_lines_of_texts_and_of_chats(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + '\n{"text": "a"}\n', encoding="utf-8")
    assert read_chats(path) == [CHAT, "a"]
    assert "line 1" in refused(lambda: read_prompts(path))
    for bad in ('{"messages": []}', '{"messages": "hello"}', '{"messages": [{"content": "a"}]}'):
        path.write_text(bad + "\n", encoding="utf-8")
        assert "line 1" in refused(lambda: read_chats(path))


def test_the_command_says_what_it_stands_for(tmp_path, parts, caplog, capsys):
    model, tokenizer = parts
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompts, states, out = tmp_path / "p.jsonl", tmp_path / "s.safetensors", tmp_path / "r.jsonl"
    prompts.write_text(json.dumps({"messages": CHAT}) + '\n{"text": "The key"}\n', encoding="utf-8")
    log = logging.getLogger("invert_fast")
    caplog.set_level(logging.INFO, logger="invert_fast")
    log.addHandler(caplog.handler)
    try:
        assert main(["capture", "--model", str(folder), "--input", str(prompts), "--output", str(states)]) == 0
    finally:
        log.removeHandler(caplog.handler)
    assert "with <|endoftext|>" in caplog.text
    assert 'tokenizer(text, add_special_tokens=True, return_tensors="pt")' in caplog.text
    assert "tokenizer.apply_chat_template(messages" in caplog.text
    assert "output_hidden_states=True).hidden_states[4][0]" in caplog.text
    assert main(["invert", "--model", str(folder), str(states), "--output", str(out)]) == 0
    assert [json.loads(line)["text"] for line in sorted(out.read_text(encoding="utf-8").splitlines())] == [
        "[user] Where is the key?\n[assistant] ",
        "<|endoftext|>The key",
    ]
    capsys.readouterr()
    score = ["score", str(out), "--reference", str(prompts)]
    assert main([*score, "--model", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 1.0
    assert main(score) == 2
    assert "--model" in capsys.readouterr().err
