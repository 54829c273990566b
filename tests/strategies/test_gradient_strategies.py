"""The two gradient modes: the paper's search step for step, exactness, honesty, and what they leave behind."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from invert_fast import Chain, Continuous, Exhaustive, Inverter, PerStepProjection, Recovery, States, Status
from invert_fast.cli.main import main
from invert_fast.engine.engine import _Stream
from invert_fast.engine.protocol import Block
from invert_fast.engine.trace import first_failure, true_ranks
from invert_fast.strategies import proxies
from invert_fast.strategies.registry import strategy_named

from ..families import FAMILIES, UNTESTED, VOCAB, exact, inverter, texts

QUICK = Continuous(steps=10, candidates=VOCAB, first_block=8, round=4)
SIPIT = PerStepProjection(max_steps=10, rest_block=64)
MODES = {"continuous": QUICK, "sipit": SIPIT}
modes = pytest.mark.parametrize("mode", MODES)
LENGTHS = (3, 1, 0, 2)


def figures(found: list[Recovery]) -> list[tuple]:
    """All that must be equal to the last bit when a run is repeated."""
    tables = [(r.token_ids, r.status, r.rank, r.steps, r.residual) for r in found]
    costs = [(r.cost.forward_tokens, r.cost.backward_tokens) for r in found]
    return [(*(t.tolist() for t in table), *cost) for table, cost in zip(tables, costs, strict=True)]


# ---- in `auto`


@pytest.mark.parametrize("family", ["qwen3", "llama"])  # of GPT-2's states the lens reads every token
def test_what_drafting_gives_up_a_few_steps_find(family, monkeypatch):
    """`auto` whose drafts give up at once: the steps come before all of the vocabulary, and find most."""
    truth, inv = texts(9, 4, 1), inverter(family)
    first, steps, last = strategy_named("auto").strategies
    assert isinstance(steps, PerStepProjection)
    assert isinstance(last, Exhaustive)
    found = inv.invert(inv.capture(truth), Chain(replace(first, max_candidates=0), steps, last))
    assert exact(found, truth)
    assert sum(r.cost.backward_tokens for r in found) > 0
    assert np.median(np.concatenate([r.rank for r in found])) < VOCAB // 3, "most before the vocabulary's turn"


# ---- exactness


@modes
@pytest.mark.parametrize("family", [*FAMILIES, *UNTESTED])
def test_every_family_is_recovered_exactly(family, mode):
    truth, inv = texts(*LENGTHS), inverter(family)
    found = inv.invert(inv.capture(truth), MODES[mode])
    assert exact(found, truth)
    for recovery in found:
        assert (recovery.steps > 0).all()
        assert recovery.cost.backward_tokens >= recovery.steps.sum()
        assert recovery.cost.forward_tokens >= recovery.cost.backward_tokens + len(recovery.token_ids)


@modes
@pytest.mark.parametrize("layer", ["embeddings", "block:1"])
def test_inner_layers_are_recovered_exactly(layer, mode):
    truth, inv = texts(*LENGTHS), inverter("llama", layer)
    assert exact(inv.invert(inv.capture(truth), MODES[mode]), truth)


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine", "dot"])
@pytest.mark.parametrize("init", proxies.INITS)
def test_every_start_and_metric(metric, init):
    truth, inv = texts(4, 2), inverter("gpt2")
    states = inv.capture(truth)
    for strategy in (replace(QUICK, metric=metric, init=init), replace(SIPIT, metric=metric, init=init)):
        assert exact(inv.invert(states, strategy), truth)


@pytest.mark.parametrize("layer", [-1, "block:1"])
def test_a_search_from_the_prior_begins_at_its_mean_row(layer):
    """By the model's own logits, which inner layers ask a second pass for."""
    truth, inv = texts(4), inverter("llama", layer)
    (found,) = inv.invert(inv.capture(truth), replace(QUICK, init="prior", trace=True, trace_stride=1))
    assert exact([found], truth)
    model = inv.decoder.model
    with torch.no_grad():
        prior = model(torch.tensor(truth)).logits[0].softmax(-1)
    rows = model.get_input_embeddings().weight.detach()
    expected = [rows.mean(0), *(prior[:-1] @ rows)]
    assert len(found.trace["positions"]) == len(expected)
    for position, start in zip(found.trace["positions"], expected, strict=True):
        assert np.allclose(position.proxies[0], start, atol=1e-5)


def test_a_row_that_says_nothing_spoils_no_start():
    """The prior of a position comes from the row before it, which may be anything."""
    truth, inv = texts(5), inverter("gpt2")
    states = inv.capture(truth)[0].hidden.clone()
    states[2] *= 1e38
    (found,) = inv.invert(states, replace(SIPIT, max_steps=2, rest_block=VOCAB))
    assert (found.token_ids[:2] == truth[0][:2]).all()
    assert (found.status[:2] == Status.CERTIFIED).all()
    assert not (found.status[2:] == Status.CERTIFIED).any()


@pytest.mark.parametrize(
    "strategy",
    [
        replace(SIPIT, optimiser="adam", lr=0.1, clip=1.0),
        replace(PerStepProjection.official(), max_steps=20),
        replace(SIPIT, candidates_per_step=7),
        replace(SIPIT, snap_every=2),
        replace(SIPIT, max_steps=0),
        replace(SIPIT, max_steps=1, rest_block=16),
        replace(QUICK, steps=1),
        replace(QUICK, steps=0),
        replace(QUICK, clip=None, growth=1),
        replace(QUICK, round=1, first_block=1, max_block=16),
    ],
    ids=repr,
)
def test_any_settings_end_exact(strategy, time_limit):
    truth, inv = texts(3, 1), inverter("llama")
    with time_limit(20):
        assert exact(inv.invert(inv.capture(truth), strategy), truth)


def test_settings_that_make_no_sense_are_refused():
    inv = inverter("gpt2")
    states = inv.capture(texts(2))
    for strategy in (replace(QUICK, init="ones"), replace(SIPIT, optimiser="lbfgs"), replace(QUICK, metric="l3")):
        with pytest.raises(ValueError, match="is unknown, expected"):
            inv.invert(states, strategy)


def test_the_operating_points_are_those_of_table_1():
    points = [Continuous.fast(), Continuous.baseline(), Continuous.high_accuracy(seed=3)]
    assert [(p.steps, p.candidates) for p in points] == [(600, 100), (1000, 2000), (2000, 10_000)]
    for p in points:
        assert (p.lr, p.weight_decay, p.clip, p.loss_threshold, p.metric) == (0.05, 1e-5, 1.0, 1e-4, "l1")
    assert points[2].seed == 3
    assert strategy_named("continuous") == Continuous.baseline()
    assert strategy_named("sipit") == PerStepProjection()


def test_in_a_chain_the_rest_is_tried_by_the_next():
    truth, inv = texts(*LENGTHS), inverter("llama")
    states = inv.capture(truth)
    assert exact(inv.invert(states, Chain(replace(QUICK, steps=2, candidates=3), Exhaustive(block=64))), truth)
    given_up = replace(SIPIT, max_steps=2, rest_block=None)
    assert exact(inv.invert(states, Chain(given_up, replace(QUICK, steps=2))), truth)


# ---- faithfulness


@pytest.mark.parametrize("init", ["zeros", "token"])
def test_a_lane_follows_plain_adam_on_the_models_own_forward_pass(init):
    """Algorithm 1 by torch.optim on the whole prefix: the same loss at every step and the same final proxy."""
    steps, truth, inv = 12, texts(3, 3, 2, seed=3), inverter("gpt2")
    states = inv.capture(truth)
    strategy = replace(QUICK, steps=steps, init=init, trace=True, trace_stride=1)
    found = inv.invert(states, strategy, batch_size=3)
    embed, body = inv.decoder.embedding, inv.decoder.model.base_model
    for recovery, ids, state in zip(found, truth, states, strict=True):
        assert recovery.trace is not None
        for t, position in enumerate(recovery.trace["positions"]):
            proxy = torch.from_numpy(position.proxies[0]).clone().requires_grad_()
            if init == "zeros":
                assert not proxy.any()
            else:
                assert (embed == proxy).all(-1).any(), "starts on a row of the embedding matrix"
            optimizer = torch.optim.Adam([proxy], lr=0.05, weight_decay=1e-5)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
            losses = []
            for _ in range(steps):
                row = torch.cat([embed[ids[:t]], proxy[None]])
                hidden = body(inputs_embeds=row[None], use_cache=False).last_hidden_state[0, -1]
                loss = torch.nn.functional.mse_loss(hidden, state.hidden[t])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([proxy], 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                if losses[-1] < 1e-4:
                    break
            assert recovery.steps[t] == len(losses) == len(position.loss)
            np.testing.assert_allclose(position.loss, losses, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(position.proxies[-1], proxy.detach(), rtol=1e-3, atol=1e-3)


def test_official_sipit_takes_steps_of_its_clip_norm(monkeypatch):
    """Far from the minimum every step has length lr × clip, along the gradient of the model's own forward pass."""
    truth, inv, seen = texts(3), inverter("gpt2"), []
    gradient = proxies.Proxies.gradient

    def watched(self, slots, value, target, held):
        loss, grad = gradient(self, slots, value, target, held)
        seen.append((int(self.context.lanes.length[0]), value[0].clone(), loss.item()))
        return loss, grad

    monkeypatch.setattr(proxies.Proxies, "gradient", watched)
    (state,) = inv.capture(truth)
    (found,) = inv.invert([state], replace(PerStepProjection.official(), snap_every=10**9, max_steps=20))
    assert found.steps.sum() == len(seen)
    pairs = [(a, b) for a, b in itertools.pairwise(seen) if a[0] == b[0]]
    assert pairs
    embed, body = inv.decoder.embedding, inv.decoder.model.base_model
    for (t, before, loss), (_, after, _) in pairs:
        proxy = before.requires_grad_()
        hidden = body(inputs_embeds=torch.cat([embed[truth[0][:t]], proxy[None]])[None]).last_hidden_state[0, -1]
        squares = (hidden - state.hidden[t]).square().sum()
        (grad,) = torch.autograd.grad(squares, proxy)
        assert squares.item() / len(grad) == pytest.approx(loss, rel=1e-3)
        expected = before.detach() - grad / grad.norm().clamp_min(1.0)
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


def test_an_easy_position_stops_early():
    truth, inv = texts(4), inverter("gpt2")
    states = inv.capture(truth)
    (long,) = inv.invert(states, replace(QUICK, steps=400, loss_threshold=0.3, trace=True))
    assert long.trace is not None
    assert (long.steps < 400).all()
    for position, steps in zip(long.trace["positions"], long.steps, strict=True):
        assert len(position.loss) == steps
        assert position.loss[-1] < 0.3
        assert (position.loss[:-1] >= 0.3).all()
    (full,) = inv.invert(states, replace(QUICK, steps=12, loss_threshold=0.0))
    assert full.steps.tolist() == [12] * 4


# ---- lanes


@modes
def test_batch_size_and_order_do_not_change_the_result(mode):
    truth, inv = texts(3, 1, 0, 4, 2, 5), inverter("llama")
    states = inv.capture(truth)
    noise = torch.randn(states[3].hidden.shape, generator=torch.Generator().manual_seed(0))
    states[3] = States(states[3].hidden + 1.0 * noise, states[3].layer)  # one that fails
    runs = [inv.invert(states, MODES[mode], batch_size=size) for size in (1, 6)]
    runs += [inv.invert(states[::-1], MODES[mode], batch_size=3)[::-1]]
    assert not runs[0][3].certified
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.status.tolist() == other.status.tolist()


@modes
@pytest.mark.parametrize("init", ["token", "gaussian"])
def test_the_same_seed_gives_the_same_run_and_another_one_another(mode, init):
    truth, inv = texts(3, 2, 3), inverter("gpt2")
    states, strategy = inv.capture(truth), replace(MODES[mode], init=init)
    one, two = (inv.invert(states, strategy, batch_size=2) for _ in range(2))
    assert figures(one) == figures(two)
    other = inv.invert(states, replace(strategy, seed=7), batch_size=2)
    assert exact(one, truth)
    assert exact(other, truth)
    assert [r.rank.tolist() for r in one] != [r.rank.tolist() for r in other]


@modes
def test_a_lane_that_is_done_takes_the_next_text_while_the_others_go_on(mode, monkeypatch):
    truth, inv = texts(1, 6, 1, 1), inverter("gpt2")
    states, together = inv.capture(truth), []
    gradient = proxies.Proxies.gradient

    def watched(self: proxies.Proxies, slots: Tensor, *rest):
        together.append({int(i) for i in self.context.lanes.text[slots]})
        return gradient(self, slots, *rest)

    monkeypatch.setattr(proxies.Proxies, "gradient", watched)
    assert exact(inv.invert(states, MODES[mode], batch_size=2), truth)
    assert all(len(group) <= 2 for group in together)
    assert all(any({1, short} == group for group in together) for short in (0, 2, 3)), "the long text waits for nobody"


@pytest.mark.parametrize("strategy", [SIPIT, replace(SIPIT, candidates_per_step=5), QUICK], ids=repr)
def test_what_was_tried_is_banned(strategy, monkeypatch):
    """No candidate is verified twice at a position, whatever becomes of it."""
    inv = inverter("llama")
    hidden = torch.randn(3, inv.decoder.width, generator=torch.Generator().manual_seed(1))  # no text at all
    tried: dict[int, list[int]] = {}
    verify = _Stream._verify_block

    def watched(self: _Stream, block: Block) -> None:
        tried.setdefault(int(self.lanes.length[0]), []).extend(block.ids[block.ids >= 0].tolist())
        verify(self, block)

    monkeypatch.setattr(_Stream, "_verify_block", watched)
    (found,) = inv.invert([hidden], strategy)
    assert found.status[0] == Status.NOT_FOUND
    assert sorted(tried[0]) == list(range(VOCAB)), "every token exactly once before giving up"
    assert len(set(tried[1])) == len(tried[1])


# ---- honesty


@pytest.mark.parametrize(
    "strategy",
    [replace(QUICK, steps=2, candidates=2), replace(SIPIT, max_steps=1, rest_block=None)],
    ids=["continuous", "sipit"],
)
def test_too_small_a_budget_fails_honestly_and_the_discrete_loss_says_where(strategy):
    """Many prompts, most of them wrong: never a certificate on a wrong token, and the detector knows every one."""
    wrong = right = 0
    for family in ("gpt2", "llama", "opt"):
        inv = inverter(family)
        truth = texts(*[1, 2, 3] * 14, seed=8)
        for ids, recovery in zip(truth, inv.invert(inv.capture(truth), strategy), strict=True):
            misses = np.flatnonzero(recovery.token_ids != ids)
            expected = int(misses[0]) if len(misses) else None
            assert recovery.first_failure == expected
            assert first_failure(recovery.discrete_loss) == expected
            assert not (recovery.status[misses] == Status.CERTIFIED).any()
            wrong, right = wrong + (expected is not None), right + (expected is None)
    assert wrong >= 20
    assert right >= 20, f"{wrong} wrong, {right} right"


def test_the_detector_on_figures_of_its_own():
    floor = [1e-12, 3e-13, 9e-12]
    assert first_failure(floor) is None
    assert first_failure([]) is None
    assert first_failure([*floor, 0.2, 0.5]) == 3
    assert first_failure([0.2, 1e-12]) == 0
    assert first_failure([1e-12, float("nan")]) == 1
    assert first_failure([4e-7, 4e-7, 4e-7]) == 2, "it is the sum that counts"
    assert first_failure([1e-4, 1e-4], threshold=1e-3) is None


# ---- observables


@pytest.fixture(scope="module")
def watched() -> tuple[Inverter, list[list[int]], list[Recovery]]:
    truth, inv = texts(4, 2, 3), inverter("gpt2")
    return inv, truth, inv.invert(inv.capture(truth), replace(QUICK, trace=True, trace_stride=7), batch_size=2)


def test_a_trace_has_the_loss_curve_and_the_proxies(watched):
    _, truth, found = watched
    for ids, recovery in zip(truth, found, strict=True):
        trace = recovery.trace
        assert trace is not None
        assert len(trace["positions"]) == len(ids)
        for position, steps, loss in zip(trace["positions"], recovery.steps, trace["loss"], strict=True):
            assert len(position.loss) == steps
            assert position.loss is loss
            assert position.proxy_steps.tolist() == [*range(0, steps, 7), steps]
            assert len(position.proxies) == len(position.proxy_steps)
            assert loss[-1] < loss[0]
        np.testing.assert_array_equal(trace["discrete_loss"], recovery.discrete_loss)
        np.testing.assert_allclose(trace["cumulative_loss"], recovery.cumulative_loss)
        assert trace["first_failure"] is None


def test_ranks_count_the_rows_strictly_nearer_to_the_proxy(watched):
    inv, truth, found = watched
    table = inv.decoder.embedding
    for ids, recovery in zip(truth, found, strict=True):
        trace = recovery.trace
        assert trace is not None
        for t, (position, ranks) in enumerate(zip(trace["positions"], trace["rank"], strict=True)):
            for proxy, rank in zip(torch.from_numpy(position.proxies), ranks, strict=True):
                distance = (table - proxy).abs().sum(-1)
                assert rank == int((distance < distance[ids[t]] - 1e-5).sum())
            assert trace["rank_at_commit"][t] == ranks[-1]
        for ours, theirs in zip(trace["rank"], true_ranks(trace, ids, table), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        other = true_ranks(trace, [(i + 1) % VOCAB for i in ids], table)
        assert any((a != b).any() for a, b in zip(trace["rank"], other, strict=True))


def test_without_being_asked_nothing_is_traced():
    inv = inverter("gpt2")
    (found,) = inv.invert(inv.capture(texts(2)), QUICK)
    assert found.trace is None


def test_positions_found_without_a_search_have_no_trace():
    truth, inv = texts(5, seed=2), inverter("gpt2")
    chain = Chain(replace(PerStepProjection.official(), max_steps=1, rest_block=None), replace(QUICK, trace=True))
    (found,) = inv.invert(inv.capture(truth), chain)
    assert found.trace is not None
    missing = [t for t, position in enumerate(found.trace["positions"]) if position is None]
    assert exact([found], truth)
    assert 0 < len(missing) < 5
    assert (found.trace["rank_at_commit"][missing] == -1).all()


# ---- command line


def test_the_command_line_runs_both(tmp_path, capsys):
    """On the bundled model; one token, since the search takes hundreds of steps for each."""
    prompts, states = tmp_path / "prompts.txt", tmp_path / "states.safetensors"
    prompts.write_text("the\nHe\n", encoding="utf-8")
    given = ["--model", "bundled", "--device", "cpu"]
    assert main(["capture", *given, "--input", str(prompts), "--output", str(states), "--max-tokens", "1"]) == 0
    outs = {}
    for name, options in {
        "sipit": ["--strategy", "sipit"],
        "continuous": ["--strategy", "continuous", "--preset", "fast", "--trace"],
    }.items():
        out = tmp_path / f"{name}.jsonl"
        assert main(["invert", *given, str(states), "--output", str(out), "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["strategy"] == name
        outs[name] = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert sorted(row["text"] for row in outs[name]) == ["He", "the"]
    assert all("trace" not in row for row in outs["sipit"])
    for row in outs["continuous"]:
        trace = row["trace"]
        (loss,), (rank,), (steps,) = trace["loss"], trace["rank"], trace["rank_step"]
        assert len(loss) == steps[-1] <= 600
        assert len(rank) == len(steps)
        assert trace["rank_at_commit"] == [rank[-1]]
        assert trace["first_failure"] is None
        assert trace["cumulative_loss"][0] < 1e-8


@pytest.mark.parametrize("options", [["--preset", "fast"], ["--trace"], ["--strategy", "sipit", "--trace"]])
def test_options_of_the_continuous_search_are_refused_elsewhere(options, tmp_path, capsys):
    given = ["invert", "--model", "bundled", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main([*given, *options]) == 2
    assert "add --strategy continuous" in capsys.readouterr().err
