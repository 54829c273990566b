"""What a defence costs is the model's own next-token loss, going on from the rows; and the command that prints it."""

from __future__ import annotations

import json

import pytest
import torch

from invert_fast import InputError, Inverter, Reading
from invert_fast.cli.main import main
from invert_fast.defences import attacked, next_token_losses, parse_defence, utility_of
from invert_fast.storage.states import open_states

from ..diagnose.captures import TEXT, bundled
from ..families import inverter, make, texts

OTHER = "Meet me at a quarter past nine by the old mill."


def own_losses(model, ids: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").double()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("layer", ["embeddings", "block:0", "block:2", "final_norm"])
def test_from_undefended_rows_the_loss_is_the_models_own(family, layer):
    inv, (ids,) = inverter(family, layer), texts(9)
    (states,) = inv.capture([ids])
    wanted = own_losses(make(family), ids)
    found = next_token_losses(inv.decoder, ids, states.hidden)
    assert torch.allclose(found, wanted, atol=1e-4)
    worse = next_token_losses(inv.decoder, ids, states.hidden.flip(-1))
    assert (worse - wanted).abs().max() > 0.1


@pytest.mark.parametrize("layer", ["block:0", "final_norm"])
def test_rows_that_were_left_out_are_not_looked_at(layer):
    inv, (ids,) = inverter("gpt2", layer), texts(9)
    (states,) = inv.capture([ids])
    places = [0, 1, 2, 3, 6]
    found = next_token_losses(inv.decoder, ids, states.hidden[places], places)
    wanted = own_losses(make("gpt2"), ids)
    assert torch.allclose(found[:4], wanted[:4], atol=1e-4)
    same = torch.allclose(found[4], wanted[6], atol=1e-4)
    assert same == (layer == "final_norm"), "blocks behind the layer attend to what is there"


def test_the_louder_the_noise_the_dearer_and_the_less_comes_back():
    inv = bundled()
    ids, batch = [inv.encode(TEXT), inv.encode(OTHER), None], inv.capture([TEXT, OTHER, OTHER])
    tokens = len(ids[0]) + len(ids[1])
    added, recovered = [], []
    for spec in ("gaussian:0", "gaussian:0.1", "gaussian:1"):
        found = utility_of(parse_defence(spec), inv.decoder, ids, batch)
        left = attacked(inv, parse_defence(spec), ids, batch, strategy="speculative")
        assert found.tokens == tokens - 2
        assert (left.tokens, left.wrong) == (tokens, 0)
        added.append(found.added)
        recovered.append((left.recovered, left.certified))
    assert added[0] == 0
    assert 0 < added[1] < added[2]
    assert recovered[0] == (1.0, 1.0)
    assert recovered[2][0] < recovered[1][0] <= 1
    assert recovered[1][1] == recovered[2][1] == 0, "noise that nobody told of is never certified"


def test_who_has_the_key_of_a_rotation_loses_nothing():
    inv, defence = bundled(), parse_defence("rotation:7")
    ids, batch = [inv.encode(TEXT)], inv.capture([TEXT])
    assert abs(utility_of(defence, inv.decoder, ids, batch).added) < 1e-4
    assert attacked(inv, defence, ids, batch, strategy="speculative").recovered < 0.2
    (found,) = inv.invert(defence.received(defence.apply(batch[0])))
    assert found.certified
    assert found.token_ids.tolist() == ids[0]


def test_what_blocks_cannot_go_on_from_is_refused():
    inv, (ids,) = inverter("gpt2"), texts(5)
    rows = inv.capture([ids])[0].hidden
    for places in ([0, 1], [0, 1, 2, 3, 9]):
        with pytest.raises(InputError, match="expected a row a position"):
            next_token_losses(inv.decoder, ids, rows, places)
    shifted = Inverter(make("gpt2"), reading=Reading(position_offset=3))
    with pytest.raises(InputError, match="expected states as captured"):
        next_token_losses(shifted.decoder, ids, rows)
    assert len(next_token_losses(inv.decoder, ids[:1], rows[:1])) == 0


@pytest.fixture
def captured(tmp_path):
    """Two prompts, their states, and where to put others."""
    prompts, states = tmp_path / "prompts.txt", tmp_path / "states.safetensors"
    prompts.write_text(f"{TEXT}\n{OTHER}\n", encoding="utf-8")
    assert main(["capture", "--model", "bundled", "--input", str(prompts), "--output", str(states)]) == 0
    return prompts, states, tmp_path / "defended.safetensors"


def run(states, out, *more) -> int:
    return main(["defend", "--model", "bundled", "--input", str(states), "--output", str(out), *map(str, more)])


def test_the_command_writes_what_is_given_away_and_prints_what_it_costs(captured, capsys):
    prompts, states, out = captured
    assert (
        run(states, out, "--defence", "gaussian:0.1", "--seed", 5, "--json", "--attack", "--strategy", "speculative")
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    before, after = open_states(states), open_states(out)
    defence = parse_defence("gaussian:0.1")
    for index in range(2):
        given = defence.apply(before.states(index, -1), 5 + index)
        assert torch.equal(after.states(index, -1).hidden, given.hidden)
    assert (after.layer, after.model) == (before.layer, before.model)
    inv = bundled()
    wanted = utility_of(defence, inv.decoder, [inv.encode(TEXT), inv.encode(OTHER)], inv.capture([TEXT, OTHER]), 5)
    assert told["added"] == pytest.approx(wanted.added, abs=1e-4)
    assert (told["texts"], told["tokens"], told["wrong"], told["certified"]) == (2, wanted.tokens, 0, 0.0)
    # with the prompts nothing has to be inverted, and the figures are the same
    assert run(states, out, "--defence", "drop:0.4", "--overwrite", "--reference", prompts) == 0
    printed = capsys.readouterr().out
    assert "drop:0.4 (seed 0)" in printed
    assert "next-token loss from final_norm" in printed
    kept = [len(parse_defence("drop:0.4").kept(length, i)) for i, length in enumerate(before.lengths())]
    assert open_states(out).lengths() == kept


def test_the_command_refuses_in_one_line(captured, tmp_path, capsys):
    _, states, out = captured
    other = tmp_path / "other.txt"
    other.write_text("One.\nTwo words.\n")
    for arguments, said in (
        (("--defence", "loud"), "unknown, expected one of"),
        (("--defence", "drop:0.1", "--reference", other), "another number of tokens than rows"),
    ):
        assert run(states, out, *arguments) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
    out.touch()
    assert run(states, out, "--defence", "drop:0.1") == 2
    assert "exists, expected a new file" in capsys.readouterr().err
