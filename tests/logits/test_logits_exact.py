"""Log-probs back into text: states as right as the numbers tell, and no certificate that says more than they do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from invert_fast import InputError, Inverter
from invert_fast.cli import demo
from invert_fast.cli.main import main
from invert_fast.logits import Logits, StateSolver
from invert_fast.logits.files import open_logits
from invert_fast.logits.unembedding import unembedding
from invert_fast.types import Status

from ..families import FAMILIES, build

TEXTS = [*demo.sentences()[:4], "", "x"]


@pytest.fixture(scope="module")
def bundled() -> Inverter:
    return Inverter.from_pretrained("bundled")


def own_logits(inv: Inverter, ids: list[int]) -> Tensor:
    """By the model itself, with its own head."""
    return inv.decoder.model(input_ids=torch.tensor([ids])).logits[0].float().detach()


def some_ids(inv: Inverter, length: int = 12) -> list[int]:
    return torch.randint(3, inv.decoder.usable_ids, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def off(found: Tensor, true: Tensor) -> float:
    return float(((found - true).norm(dim=-1) / true.norm(dim=-1)).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("entries", ["full", "subset", "top", "logits"])
def test_states_of_every_family(family, entries):
    inv = Inverter(build(family))
    ids = some_ids(inv)
    (states,) = inv.capture([ids])
    values = own_logits(inv, ids)
    record = {
        "full": lambda: Logits(values.log_softmax(-1)),
        "logits": lambda: Logits(values + 3.0),  # a constant changes nothing
        "subset": lambda: Logits(values.log_softmax(-1)[:, 5:150], torch.arange(5, 150)),
        "top": lambda: Logits(*values.log_softmax(-1).topk(150)),
    }[entries]()
    found = StateSolver(inv.decoder).solve(record)
    assert off(found.hidden.float(), states.hidden) < 1e-4
    (recovery,) = inv.invert_logits(record)
    assert recovery.token_ids.tolist() == ids
    assert recovery.certified


def test_a_bias_and_a_scale_of_the_head_are_undone():
    model = build("gpt2")
    head = torch.nn.Linear(64, 300)
    torch.nn.init.normal_(head.weight)
    model.set_output_embeddings(head)
    model.lm_head = head
    inv = Inverter(model)
    ids = some_ids(inv)
    found = StateSolver(inv.decoder).solve(Logits(own_logits(inv, ids).log_softmax(-1)))
    assert off(found.hidden.float(), inv.capture([ids])[0].hidden) < 1e-4


def test_capped_logits_are_undone_and_capped_log_probs_refused():
    inv = Inverter(build("gemma2"))
    ids = some_ids(inv)
    values = own_logits(inv, ids)
    assert unembedding(inv.decoder).softcap == 30.0
    found = StateSolver(inv.decoder).solve(Logits(values, kind="logits"))
    assert off(found.hidden.float(), inv.capture([ids])[0].hidden) < 1e-3
    with pytest.raises(InputError, match=r"caps its logits at 30.*kind='logits'"):
        StateSolver(inv.decoder).solve(Logits(values.log_softmax(-1)))


def test_a_head_that_is_not_linear_is_refused():
    model = build("gpt2")

    class Squared(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).square()

    model.lm_head = Squared(64, 300)
    with pytest.raises(InputError, match="do not follow linearly"):
        unembedding(Inverter(model).decoder)


def test_another_layer_is_refused():
    inv = Inverter(build("gpt2"), layer=1)
    with pytest.raises(InputError, match="layer=-1"):
        inv.invert_logits(torch.zeros(2, 300))


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_expected_error_of_rounded_numbers_is_the_real_one(bundled, stored, raw):
    (states,) = bundled.capture([TEXTS[0]])
    values = own_logits(bundled, bundled.encode(TEXTS[0]))
    values = values if raw else values.log_softmax(-1)
    for record in (
        Logits(values.to(getattr(torch, stored))),
        Logits(values[:, ::12].to(getattr(torch, stored)), torch.arange(0, 4096, 12)),
        Logits(values.topk(400).values.to(getattr(torch, stored)), values.topk(400).indices),
    ):
        found = StateSolver(bundled.decoder).solve(record)
        error = (found.hidden.float() - states.hidden).norm(dim=-1) / states.hidden.norm(dim=-1)
        assert found.chi is not None
        assert 0.8 < found.chi.median() < 1.2
        assert (0.1 if raw else 0.5) < (error / found.deviation).median() < 1.6  # raw: a bound from above
        assert (error / found.deviation).max() < 3


def test_weights_of_rounding_beat_equal_ones(bundled):
    """Raw logits near zero are stored far more exactly than large ones."""
    (states,) = bundled.capture([TEXTS[0]])
    coarse = own_logits(bundled, bundled.encode(TEXTS[0])).to(torch.bfloat16)
    solver = StateSolver(bundled.decoder)
    weighted = off(solver.solve(Logits(coarse)).hidden.float(), states.hidden)
    equal = off(solver.solve(Logits(coarse.float())).hidden.float(), states.hidden)
    assert weighted < equal / 2


@pytest.mark.parametrize(
    ("stored", "entries"), [("float32", 0), ("bfloat16", 0), ("float32", 320), ("float32", 257), ("float16", 320)]
)
def test_texts_come_back_certified(bundled, stored, entries):
    texts = [bundled.encode(t, 16) for t in TEXTS]
    ids = torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:entries] if entries else None
    records = []
    for text in texts:
        values = own_logits(bundled, text).log_softmax(-1) if text else torch.zeros(0, 4096)
        values = values if ids is None else values[:, ids]
        records.append(Logits(values.to(getattr(torch, stored)), ids))
    for text, recovery in zip(texts, bundled.invert_logits(records), strict=True):
        assert recovery.token_ids.tolist() == text
        assert recovery.certified


@given(noise=st.floats(1e-4, 0.5), seed=st.integers(0, 99), claim=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=12)
def test_noise_never_makes_a_wrong_certificate(noise, seed, claim):
    """Entries that are further off than their precision explains: what is certified is still right."""
    inv = Inverter(build("llama", vocab=150, width=32, blocks=2))
    ids = some_ids(inv, 8)
    generator = torch.Generator().manual_seed(seed)
    values = own_logits(inv, ids).log_softmax(-1)
    values = values + noise * torch.randn(values.shape, generator=generator)
    try:
        (recovery,) = inv.invert_logits(Logits(values, kind="logits", dtype=claim))
    except InputError as error:  # too much noise to be of this model
        if "unexplained" not in str(error):
            raise
        return
    sure = recovery.status == Status.CERTIFIED
    assert (recovery.token_ids[sure] == np.array(ids)[sure]).all()


BAD = {
    "vocabulary": (lambda v: Logits(v[:, :-3]), "4093 entries.*vocabulary has 4096"),
    "few": (lambda v: Logits(v[:, :200], torch.arange(200)), "200 entries, expected at least 257"),
    "top few": (lambda v: Logits(*v.topk(20)), "20 entries, expected at least 257"),
    "-inf": (lambda v: Logits(v.masked_fill(v < v.topk(500).values[:, -1:], -torch.inf)), "not finite.*-inf"),
    "nan": (lambda v: Logits(v.masked_fill(v == v[2, 7], torch.nan)), "position 2 has 1 .*nan for token 7"),
    "sum": (lambda v: Logits(v + 1, kind="log_probs"), "sum to e\\^1.*not normalised.*kind='logits'"),
    "shuffled": (lambda v: Logits(v[:, torch.randperm(4096)]), "ids are shuffled"),
    "shuffled subset": (lambda v: Logits(v[:, :900], torch.randperm(4096)[:900]), "ids are shuffled"),
    "twice": (lambda v: Logits(v[:, :300], torch.arange(300).clamp_max(298)), "298 is there twice"),
    "id": (lambda v: Logits(v[:, :300], torch.arange(300) + 4000), "4299 is outside"),
    "ids shape": (lambda v: Logits(v[:, :300], torch.arange(299)), "\\[299\\], expected"),
    "kind": (lambda v: Logits(v, kind="odds"), "'odds' is unknown"),
    "integers": (lambda v: Logits(v.long()), "int64.*float tensor"),
    "dimensions": (lambda v: Logits(v[0]), "\\[4096\\], expected a float tensor"),
    "model": (lambda v: Logits(v, model="gpt2:0123"), "gpt2:0123.*same checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_worked_on_is_named(bundled, case):
    make, message = BAD[case]
    torch.manual_seed(0)
    values = own_logits(bundled, bundled.encode(TEXTS[0])).log_softmax(-1)
    with pytest.raises(InputError, match=message):
        bundled.invert_logits(make(values))


def test_entries_that_say_too_little_are_refused():
    """Equal unembedding rows add nothing."""
    model = build("llama")
    model.lm_head.weight.data[100:300] = model.lm_head.weight.data[100].clone()
    inv = Inverter(model)
    with pytest.raises(InputError, match=r"determine only .* of the 64 dimensions"):
        inv.invert_logits(Logits(own_logits(inv, some_ids(inv))[:, 60:200], torch.arange(60, 200), kind="logits"))


# ---- the command line


def run(*arguments) -> int:
    return main(["logits", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("logits")
    (root / "prompts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return root


def capture(folder, name: str, *options):
    path = folder / name
    assert run("capture", "--model", "bundled", "--input", folder / "prompts.jsonl", "--output", path,
               "--max-tokens", 12, *options) == 0  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", ["--store-dtype", "bfloat16"]),
        ("raw", ["--raw", "--store-dtype", "float16"]),
        ("subset", ["--entries", "320"]),
        ("top", ["--entries", "top-400"]),
    ],
)
def test_capture_and_invert(folder, tmp_path, capsys, bundled, name, options):
    path, out = capture(folder, f"{name}.safetensors", *options), tmp_path / "out.jsonl"
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"values", "offsets"} | ({"ids"} if name in ("subset", "top") else set())
    assert b"truth" not in path.read_bytes()
    assert run("invert", "--model", "bundled", path, "--output", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["prompts"] == summary["certified"] == len(TEXTS)
    rows = {row["index"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert [rows[i]["token_ids"] for i in range(len(TEXTS))] == [bundled.encode(t, 12) for t in TEXTS]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl"]  # no trace of the states between


def test_resume_goes_on(folder, tmp_path):
    path, out = capture(folder, "again.safetensors"), tmp_path / "out.jsonl"
    assert run("invert", "--model", "bundled", path, "--output", out) == 0
    whole = out.read_text(encoding="utf-8").splitlines()
    out.write_text("\n".join(whole[:2]) + '\n{"index": 3, "tok', encoding="utf-8")
    assert run("invert", "--model", "bundled", path, "--output", out) == 2  # never written over
    assert run("invert", "--model", "bundled", path, "--output", out, "--resume") == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(len(TEXTS)))


def test_a_states_file_is_no_logits_file(folder, tmp_path, capsys):
    save_file({"hidden": torch.zeros(2, 256), "offsets": torch.tensor([0, 2])}, tmp_path / "s.safetensors")
    assert run("invert", "--model", "bundled", tmp_path / "s.safetensors", "--output", tmp_path / "o.jsonl") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    save_file({"values": torch.zeros(2, 9), "ids": torch.zeros(3, dtype=torch.long)}, tmp_path / "i.safetensors")
    with pytest.raises(InputError, match="`ids` has shape"):
        open_logits(tmp_path / "i.safetensors")
