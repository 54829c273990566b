"""The baselines recover exactly, and each rule that makes them what was published is seen to be at work."""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invert_fast.baselines import common, continuous_loop, sipit, vma
from invert_fast.cli import demo
from invert_fast.model.load import load

from ..families import BLOCKS, build, make, texts

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"sipit": sipit.invert, "continuous loop": continuous_loop.invert, "vma": vma.invert}
# A tenth of the steps and a wider window: the paper's own presets take seconds a token.
BRIEF = continuous_loop.Preset(60, 1000)
SMALL = 110  # a vocabulary that SIPIT goes through twice past its snap


@pytest.fixture(scope="module")
def bundled():
    """The bundled model and two short texts."""
    model, tokenizer = load("bundled")
    return model, [tokenizer(text)["input_ids"][:4] for text in demo.sentences()[:2]]


@pytest.fixture(scope="module")
def small():
    return build("llama", vocab=SMALL)


@dataclass
class Log:
    """Last embedding of every forward pass: of proxies (with gradient) and of candidates (without)."""

    proxies: list[Tensor] = field(default_factory=list)
    candidates: list[Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def tokens(self, model: Any) -> list[int]:
        """Ids of the candidates, in the order in which they were run."""
        table = model.get_input_embeddings().weight
        return [int((table - embed).norm(dim=1).argmin()) for embed in self.candidates]


@pytest.fixture
def log(monkeypatch) -> Log:
    log, run = Log(), common.WatchedModel.states

    def states(self, embeds, cache=None):
        log.lengths.append(embeds.shape[1])
        kept = log.proxies if embeds.requires_grad else log.candidates
        kept.extend(row[-1].detach().clone() for row in embeds)
        return run(self, embeds, cache)

    monkeypatch.setattr(common.WatchedModel, "states", states)
    return log


def unreachable(model, length: int = 1, seed: int = 0) -> Tensor:
    """States that no token has."""
    return torch.randn(length, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))


def brief(method: str) -> dict[str, Any]:
    return {"preset": BRIEF} if method == "continuous loop" else {}


def by_rank(values: Tensor) -> list[int]:
    return values.argsort(stable=True).tolist()


# ---- all of them


@pytest.mark.parametrize("method", METHODS)
def test_recovers_the_bundled_model(bundled, method):
    model, rows = bundled
    for row in rows:
        hidden = common.capture(model, row, prefix_by_prefix=method == "sipit")
        found = METHODS[method](model, hidden, **brief(method))
        assert found.token_ids == row
        assert all(found.accepted)
        assert found.seconds > 0


@pytest.mark.parametrize("layer", [1, -1, common.BEFORE_NORM])
@pytest.mark.parametrize("method", METHODS)
def test_recovers_a_llama(method, layer):
    model, row = make("llama"), texts(4)[0]
    hidden = common.capture(model, row, layer, prefix_by_prefix=method == "sipit")
    found = METHODS[method](model, hidden, layer, **brief(method))
    assert found.token_ids == row


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_recover_and_a_layer_that_is_not_there(small, method):
    empty = METHODS[method](small, unreachable(small)[:0])
    assert (empty.token_ids, empty.forward_tokens, empty.backward_tokens) == ([], 0, 0)
    for layer in ("final", BLOCKS + 1, -BLOCKS - 2):
        with pytest.raises(ValueError, match="before_norm"):
            METHODS[method](small, unreachable(small), layer)


def test_layers_are_those_of_hugging_face():
    for family in ("gpt2", "llama", "gemma"):
        model, row = make(family), texts(5)[0]
        body: Any = model.base_model
        with torch.no_grad():
            out = model(torch.tensor([row]), output_hidden_states=True)
            for layer in range(-BLOCKS - 1, BLOCKS + 1):
                torch.testing.assert_close(common.capture(model, row, layer), out.hidden_states[layer][0])
            norm = body.ln_f if family == "gpt2" else body.norm
            before = common.capture(model, row, common.BEFORE_NORM)
            assert not torch.allclose(before, out.hidden_states[-1][0], atol=0.1)
            torch.testing.assert_close(norm(before), out.hidden_states[-1][0])
        one_by_one = common.capture(model, row, prefix_by_prefix=True)
        torch.testing.assert_close(one_by_one, out.hidden_states[-1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["sipit", "continuous loop"])
def test_the_same_seed_gives_the_same_run(small, method):
    short = {"preset": continuous_loop.Preset(5, 5), "init": "token"} if method == "continuous loop" else {}
    row = texts(3, vocab=SMALL)[0]
    hidden = common.capture(small, row, prefix_by_prefix=True)
    state = torch.get_rng_state()

    def run(seed):
        r = METHODS[method](small, hidden, seed=seed, **short)
        return r.token_ids, r.iterations, r.tried, r.forward_tokens, r.backward_tokens

    assert run(1) == run(1)
    assert len({str(run(seed)) for seed in range(6)}) > 1
    assert torch.equal(torch.get_rng_state(), state), "the global generator is somebody else's"


def test_gradients_stay_out_of_the_model():
    model = build("llama", vocab=20).requires_grad_(True)
    sipit.invert(model, unreachable(model))
    continuous_loop.invert(model, unreachable(model), preset=continuous_loop.Preset(3, 2))
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- SIPIT


def test_sipit_accepts_within_1e_5_and_nothing_else(small):
    row = texts(1, vocab=SMALL)[0]
    true = common.capture(small, row, prefix_by_prefix=True)
    near = sipit.invert(small, true + 0.9 * (1e-5 + 1e-5 * true.abs()))
    assert (near.token_ids, near.accepted) == (row, [True])
    for coordinate in (int(true.abs().argmin()), int(true.abs().argmax())):  # one is enough: where atol and rtol rule
        off = true.clone()
        off[0, coordinate] += 1.5 * (1e-5 + 1e-5 * off[0, coordinate].abs())
        far = sipit.invert(small, off)
        assert (far.accepted, far.iterations) == ([False], [SMALL])


def test_sipit_steps_projects_tries_and_bans(small, log):
    """The whole search, followed from the outside: each proxy is one step from the last, each candidate the nearest."""
    sipit.invert(small, unreachable(small))
    E, tried, banned = small.get_input_embeddings().weight, log.tokens(small), []
    assert torch.equal(log.proxies[0], E[int((E - log.proxies[0]).norm(dim=1).argmin())]), "starts from a token"
    assert sorted(tried) == list(range(SMALL)), "each token once: none was tried again after its ban"
    for iteration, (before, after) in enumerate(itertools.pairwise(log.proxies), start=1):
        if iteration % 50:
            assert (after - before).norm() <= 1 + 1e-4, "learning rate 1, gradient clipped to 1"
            order = by_rank((E - after).norm(dim=1))
            assert next(token for token in order if token not in banned) == tried[iteration - 1]
        banned.append(tried[iteration - 1])
    assert (log.proxies[1] - log.proxies[0]).norm() == pytest.approx(1, abs=1e-3), "a long gradient is cut to 1, not 0"


def test_sipit_snaps_to_the_token_just_tried_every_50_iterations(small, log):
    sipit.invert(small, unreachable(small))
    E, tried = small.get_input_embeddings().weight, log.tokens(small)
    on_a_row = [i for i, proxy in enumerate(log.proxies) if bool((proxy == E).all(1).any())]
    assert on_a_row == [0, 50, 100]
    assert all(torch.equal(log.proxies[i], E[tried[i - 1]]) for i in (50, 100))


def test_sipit_snaps_more_rarely_at_the_first_position_of_a_large_vocabulary():
    assert [sipit.snap_interval(0, v) for v in (4096, 24_999, 25_000, 50_257, 151_936)] == [50, 50, 100, 150, 350]
    assert {sipit.snap_interval(t, 151_936) for t in (1, 2, 99)} == {50}


def test_sipit_commits_silently_after_v_iterations(small, log):
    found = sipit.invert(small, unreachable(small, 2))
    assert found.iterations == found.tried == [SMALL, SMALL]
    assert found.accepted == [False, False]
    tried = log.tokens(small)
    assert found.token_ids == [tried[SMALL - 1], tried[-1]], "the last token tried"


def test_sipit_runs_the_whole_prefix_each_time(small, log):
    row = texts(4, vocab=SMALL)[0]
    hidden = common.capture(small, row, prefix_by_prefix=True)
    log.lengths.clear()
    found = sipit.invert(small, hidden)
    assert log.lengths == [t + 1 for t, steps in enumerate(found.iterations) for _ in range(2 * steps)]
    assert found.forward_tokens == sum(log.lengths) == 2 * found.backward_tokens


def test_sipit_learning_rate_falls_when_asked(small, log):
    sipit.invert(small, unreachable(small), linear_lr=True)
    steps = torch.stack([(b - a).norm() for a, b in itertools.pairwise(log.proxies)])
    limit = 1 - 0.99 * torch.arange(len(steps)) / SMALL
    away = torch.arange(1, len(steps) + 1) % 50 != 0
    assert bool((steps[away] <= limit[away] + 1e-4).all())
    assert bool((steps[away] > 0.99 * limit[away]).sum() > len(steps) // 2), "clipped steps are as long as the rate"


# ---- the continuous loop


def test_loop_presets_are_table_1():
    presets = {name: (p.steps, p.candidates) for name, p in continuous_loop.PRESETS.items()}
    assert presets == {"fast": (600, 100), "baseline": (1000, 2000), "high-accuracy": (2000, 10_000)}
    assert {(p.loss_threshold, p.discrete_threshold) for p in continuous_loop.PRESETS.values()} == {(1e-4, 1e-4)}


def test_loop_leaves_at_the_threshold_one_step_after_the_loss_that_met_it(small, log):
    target, watched = common.capture(small, texts(1, vocab=SMALL)[0]), common.WatchedModel(small)

    def losses(threshold: float) -> list[float]:
        log.proxies.clear()
        found = continuous_loop.invert(small, target, preset=continuous_loop.Preset(30, 1, loss_threshold=threshold))
        proxies = list(log.proxies)
        assert found.iterations == [len(proxies)]
        with torch.no_grad():
            return [
                float((watched.last_state(proxy[None][:0], proxy) - target[0]).square().mean()) for proxy in proxies
            ]

    all_of_them = losses(0.0)
    assert len(all_of_them) == 30
    threshold = sorted(all_of_them)[15]
    until = losses(threshold)
    assert 1 < len(until) < 30
    assert until[-1] < threshold <= min(until[:-1])
    assert len(losses(1e9)) == 1


def test_loop_starts_from_zeros_and_cools_down(small, log):
    steps = 40
    continuous_loop.invert(small, unreachable(small), preset=continuous_loop.Preset(steps, 1))
    assert not log.proxies[0].any()
    longest = [float((b - a).abs().max()) for a, b in itertools.pairwise(log.proxies)]
    assert longest[0] == pytest.approx(0.05, rel=1e-3), "Adam's first step is the learning rate"
    assert longest[-1] < 0.05 * 0.05, "the cosine is nearly 0 by then"
    log.proxies.clear()
    continuous_loop.invert(small, unreachable(small), preset=continuous_loop.Preset(1, 1), init="token")
    assert bool((small.get_input_embeddings().weight == log.proxies[0]).all(1).any())
    with pytest.raises(ValueError, match="zeros"):
        continuous_loop.invert(small, unreachable(small), init="ones")


def test_loop_tries_the_c_nearest_by_l1_and_falls_back_on_the_nearest(small, log, monkeypatch):
    final, nearest = [], continuous_loop.nearest_tokens
    monkeypatch.setattr(
        continuous_loop, "nearest_tokens", lambda E, proxy, count: final.append(proxy) or nearest(E, proxy, count)
    )
    found = continuous_loop.invert(small, unreachable(small, 2), preset=continuous_loop.Preset(5, 9))
    E, tried = small.get_input_embeddings().weight, log.tokens(small)
    for t, proxy in enumerate(final):
        assert tried[9 * t : 9 * t + 9] == by_rank((E - proxy).abs().sum(1))[:9]
    assert found.token_ids == [tried[0], tried[9]]
    assert (found.tried, found.accepted) == ([9, 9], [False, False])
    assert len(final) == 2, "one discrete search a position"


def test_loop_measures_candidates_by_l1_not_l2():
    E = torch.tensor([[3.0, 0.0, 0.0], [1.2, 1.2, 1.2]])
    assert continuous_loop.nearest_tokens(E, torch.zeros(3), 10) == [0, 1]


def test_loop_commits_the_first_candidate_under_the_threshold(small):
    target = common.capture(small, texts(1, vocab=SMALL)[0])
    # from a few steps only, the right token is not the nearest: it must be reached past wrong ones
    short = continuous_loop.Preset(3, SMALL)
    found = continuous_loop.invert(small, target, preset=short)
    assert found.token_ids == texts(1, vocab=SMALL)[0]
    assert found.accepted == [True]
    assert 1 < found.tried[0] < SMALL
    lenient = continuous_loop.invert(small, target, preset=continuous_loop.Preset(3, SMALL, discrete_threshold=1e9))
    assert (lenient.tried, lenient.accepted) == ([1], [True])


def test_loop_runs_the_whole_prefix_each_time(small, log):
    found = continuous_loop.invert(small, unreachable(small, 3), preset=continuous_loop.Preset(4, 2))
    assert log.lengths == [t + 1 for t in range(3) for _ in range(4 + 2)]
    assert found.forward_tokens == sum(log.lengths)
    assert found.backward_tokens == 4 * (1 + 2 + 3)


# ---- VMA


def test_vma_runs_tokens_in_the_order_of_the_next_token_probability(small, log):
    found = vma.invert(small, unreachable(small, 2), batch_size=32)
    tried = log.tokens(small)
    assert tried[:SMALL] == list(range(SMALL)), "no prefix, no prediction: ids in order"
    logits = small(torch.tensor([found.token_ids[:1]])).logits[0, -1]
    assert tried[SMALL:] == by_rank(-logits)
    assert (found.iterations, found.tried, found.accepted) == ([4, 4], [SMALL, SMALL], [False, False])
    assert set(log.lengths) == {1}, "candidates share the prefix's keys and values"
    assert found.forward_tokens == 2 * SMALL + 1
    assert found.backward_tokens == 0


def test_vma_takes_the_best_of_v_by_l1_when_none_is_near(small):
    target = unreachable(small)
    found = vma.invert(small, target, batch_size=16)
    states = torch.cat([common.capture(small, [token]) for token in range(SMALL)])
    assert found.token_ids == [int((states - target).abs().sum(1).argmin())]


def test_vma_stops_at_the_first_batch_with_a_match_and_takes_its_best(small):
    row = [37, 5, 99]
    hidden = common.capture(small, row)
    found = vma.invert(small, hidden, batch_size=16)
    assert found.token_ids == row
    assert found.iterations[0] == 37 // 16 + 1
    logits = small(torch.tensor([row])).logits[0]
    ranks = [by_rank(-logits[t - 1]).index(row[t]) for t in (1, 2)]
    assert found.iterations[1:] == [rank // 16 + 1 for rank in ranks]
    lenient = vma.invert(small, hidden[:1], batch_size=50, epsilon=1e9)
    assert (lenient.token_ids, lenient.iterations) == ([37], [1]), "not the first under epsilon: the best of its batch"


def test_vma_keeps_to_the_window_of_a_model_that_has_one():
    model, row = make("mistral"), texts(9)[0]
    found = vma.invert(model, common.capture(model, row))
    assert found.token_ids == row
    assert all(found.accepted)


# ---- apart from the package


def test_the_package_does_not_know_of_the_baselines():
    for path in [*(ROOT / "invert_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] in {"bench", "baselines"} for name in names), path


def test_the_baselines_do_not_know_of_the_package():
    for path in (ROOT / "bench" / "baselines").glob("*.py"):
        assert "import invert_fast" not in path.read_text(encoding="utf-8")
        assert "from invert_fast" not in path.read_text(encoding="utf-8")
