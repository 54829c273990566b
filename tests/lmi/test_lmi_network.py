"""The learned inverter's parts: what is shown, how it is unrolled, what is closed-form, and the body behind it."""

from __future__ import annotations

import math

import pytest
import torch

from invert_fast.lmi.bodies import from_config
from invert_fast.lmi.estimates import Estimates
from invert_fast.lmi.muon import orthogonal
from invert_fast.lmi.network import build
from invert_fast.lmi.settings import Architecture
from invert_fast.lmi.target import Target
from invert_fast.lmi.unroll import RunningMean, Unroll
from invert_fast.lmi.view import View, check_vectors, show
from invert_fast.lmi.whiten import Whiten
from invert_fast.model.load import load
from invert_fast.types import InputError

TINY = Architecture(body="tiny", width=16, layers=1, decoder_layers=1, heads=2, feed_forward=32, max_tokens=6)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(*load("bundled"))


@pytest.mark.parametrize(("steps", "width", "d"), [(1, 24, 8), (1, 21, 8), (3, 9, 4), (2, 3, 8)])
def test_unrolling_equals_the_readable_reference(steps, width, d):
    torch.manual_seed(0)
    unroll = Unroll(steps, width, d, bottleneck=5).eval()
    torch.nn.init.normal_(unroll.place)
    x = torch.randn(2, steps, width)
    chunks = math.ceil(width / d)
    rows = []
    for b in range(2):
        for step in range(steps):
            padded = torch.cat([x[b, step], torch.zeros(chunks * d - width)])
            for i in range(chunks):
                mixed = torch.stack([
                    sum(padded[i * d + k] * unroll.matrices[i, k, out] for k in range(d)) for out in range(d)
                ])  # fmt: skip
                inner, _, _, outer = unroll.mlp
                hidden = torch.nn.functional.gelu(inner.weight @ mixed + inner.bias)
                rows.append(outer.weight @ hidden + outer.bias + unroll.place[step, i])
    expected = torch.stack(rows).view(2, steps * chunks, d)
    torch.testing.assert_close(unroll(x), expected, rtol=1e-5, atol=1e-6)


def test_the_running_mean_moves_by_a_hundredth_and_only_in_training():
    mean = RunningMean(steps=1, width=2, ema=0.01)
    a, b = torch.tensor([[[1.0, 3.0]], [[3.0, 5.0]]]), torch.tensor([[[12.0, 4.0]], [[12.0, 4.0]]])
    mean(a)
    torch.testing.assert_close(mean.mean, torch.tensor([[2.0, 4.0]]))
    out = mean(b)
    torch.testing.assert_close(mean.mean, torch.tensor([[2.1, 4.0]]))
    torch.testing.assert_close(out[0, 0], torch.tensor([9.9, 0.0]))
    mean.eval()(b)
    torch.testing.assert_close(mean.mean, torch.tensor([[2.1, 4.0]]))


def test_whitening_keeps_all_of_a_linear_image_and_drops_the_constant():
    torch.manual_seed(0)
    hidden, unembed = torch.randn(400, 6) * torch.tensor([1, 1, 1, 1, 1e-2, 1e-2]), torch.randn(9, 6)
    vectors = hidden @ unembed.T
    whiten = Whiten(9, 8)
    whiten.fit(vectors)
    out = whiten(vectors)
    used = whiten.project.abs().sum(0) > 0
    assert int(used.sum()) == 6  # the other two only round
    torch.testing.assert_close(torch.cov(out[:, used].T), torch.eye(6), rtol=0, atol=1e-2)
    torch.testing.assert_close(whiten(vectors + 5.0), out, rtol=0, atol=1e-2)  # as normalising log-probs does
    kept = torch.cat([out[:, used], torch.ones(400, 1)], 1)
    torch.testing.assert_close(kept @ torch.linalg.lstsq(kept, hidden).solution, hidden, rtol=0, atol=1e-3)


def test_estimates_find_what_is_linear_in_the_vectors():
    torch.manual_seed(0)
    table, prompts = torch.randn(20, 4), torch.randint(20, (600, 3)).tolist()
    vectors = torch.cat([table[torch.tensor(prompts)].flatten(1), torch.randn(600, 4)], 1).view(600, 2, 8)
    estimates = Estimates(steps=2, width=8, d=4, count=3)
    estimates.fit(vectors, prompts, table)
    rows = estimates(vectors)
    for row, at in enumerate([0, 1, 2, -1, -2, -3]):
        true = torch.tensor([ids[at] for ids in prompts])
        assert bool((torch.cdist(rows[:, row], table).argmin(1) == true).all()), at


def test_muon_makes_each_matrix_of_a_stack_orthogonal():
    torch.manual_seed(0)
    for shape in ((8, 8), (8, 24), (3, 24, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


def test_views_show_what_they_say():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    full = show(logits, View())
    torch.testing.assert_close(full, logits.log_softmax(-1))
    torch.testing.assert_close(show(logits, View(kind="logits")), logits)
    torch.testing.assert_close(show(logits, View(temperature=2.0)), (logits / 2).log_softmax(-1))
    top = show(logits, View(top_k=2))
    torch.testing.assert_close(top[0, :2], full[0, :2])
    rest = (1 - full[0, :2].exp().sum()) / 2
    torch.testing.assert_close(top[0, 2:].exp(), rest.expand(2))
    nucleus = show(logits, View(top_p=0.7)).exp()  # 0.64 + 0.24 first exceed it
    torch.testing.assert_close(nucleus[0, :2].sum(), torch.tensor(1 - 1e-4))
    torch.testing.assert_close(nucleus[0, 0] / nucleus[0, 1], torch.tensor(math.e))
    some = View(entries=2, seed=3)
    ids = some.tokens(4)
    assert ids is not None
    torch.testing.assert_close(show(logits, some), full[:, ids])


def test_vectors_are_the_models_own_distributions_along_its_greedy_text(target):
    prompts = target.encode(["The old king", "She said that he", "Rain"])
    vectors = target.vectors(prompts, View(steps=3, entries=40))
    tokens = View(entries=40).tokens(target.vocab_size)
    for ids, seen in zip(prompts, vectors, strict=True):
        text = list(ids)
        for step in range(3):
            logits = target.model(input_ids=torch.tensor([text])).logits[0, -1]
            torch.testing.assert_close(seen[step], logits.log_softmax(-1)[tokens], rtol=0, atol=2e-4)
            text.append(int(logits.argmax()))


@pytest.mark.parametrize("view", [View(), View(kind="logits"), View(steps=2, entries=40, noise=0.1), View(kind="text")])
def test_every_input_goes_through_a_body_of_another_kind(target, view):
    bart = {"model_type": "bart", "vocab_size": 30, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    bart |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    net = build(target.vocab_size, view, TINY)
    net.body = from_config({**bart, "max_position_embeddings": 700})  # another vocabulary than the target's
    net.train().loss(target.vectors([[5, 6], [7]], view), torch.tensor([[3, 2], [4, 2]])).backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    assert len(net.write(target.vectors([[5, 6], [7]], view))) == 2


def test_bad_vectors_are_refused(target):
    view = View()
    good = target.vectors([[5, 6]], view)
    check_vectors(good, view, target.vocab_size)
    masked = good.clone()
    masked[0, 0, 7] = float("-inf")
    for bad, word in [
        (good[..., :4000], "vocabulary of 4096"),
        (masked, "infinite"),
        (good + 3.0, "sum to"),
        (good.long(), "floating"),
        (good[0], "shape"),
    ]:
        with pytest.raises(InputError, match=word):
            check_vectors(bad, view, target.vocab_size)
    net = build(target.vocab_size, view, TINY)
    with pytest.raises(InputError, match="infinite"):
        net.write(masked)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: View(kind="words"), "log-probs"),
        (lambda: View(kind="logits", top_k=3), "probabilities"),
        (lambda: View(temperature=0.0), "temperature"),
        (lambda: View(entries=5000).check(4096), "4096"),
        (lambda: Architecture(width=10, heads=4), "heads"),
        (lambda: from_config({"model_type": "gpt2"}), "encoder-decoder"),
        (lambda: from_config({"model_type": "t5", "d_model": 10**9}), "d_model"),
        (lambda: build(4096, View(), Architecture(body="/no/such/folder")), "does not exist"),
    ],
)
def test_bad_settings_are_refused(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_bad_prompts_are_refused(target):
    for prompts, word in [([[1, 4096]], "4096"), ([[]], "0 tokens"), ([[1] * 1024], "1024 tokens")]:
        with pytest.raises(InputError, match=word):
            target.vectors(prompts, View(steps=2))
