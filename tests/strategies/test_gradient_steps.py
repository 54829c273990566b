"""The papers' searches step for step, against PyTorch's optimiser on the model's own forward pass."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from invert_fast import PerStepProjection
from invert_fast.strategies import per_step, proxies

from ..families import VOCAB, inverter, texts
from .modes import QUICK


@pytest.mark.parametrize(("init", "stabilised"), [("zeros", True), ("token", True), ("zeros", False)])
def test_a_lane_follows_adam_on_the_models_own_forward_pass(init, stabilised):
    """Algorithm 1 by torch.optim on the whole prefix: the same loss at every step and the same final proxy. Also
    without its schedule and its clipping, the plain Adam that it is compared with."""
    steps, truth, inv = 12, texts(3, 3, 2, seed=3), inverter("gpt2")
    states = inv.capture(truth)
    strategy = replace(QUICK, steps=steps, init=init, trace=True, trace_stride=1)
    if not stabilised:
        strategy = replace(strategy, anneal=False, clip=None)
    found = inv.invert(states, strategy, batch_size=3)
    embed, body = inv.decoder.embed(torch.arange(VOCAB)), inv.decoder.model.base_model
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
                if stabilised:
                    torch.nn.utils.clip_grad_norm_([proxy], 1.0)
                optimizer.step()
                if stabilised:
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

    def watched(self, slots, value, held):
        loss, grad = gradient(self, slots, value, held)
        seen.append((int(self.context.lanes.length[0]), value[0].clone(), loss.item()))
        return loss, grad

    monkeypatch.setattr(proxies.Proxies, "gradient", watched)
    (state,) = inv.capture(truth)
    (found,) = inv.invert([state], replace(PerStepProjection.official(), snap_every=10**9, max_steps=20))
    assert found.steps.sum() == len(seen)
    pairs = [(a, b) for a, b in itertools.pairwise(seen) if a[0] == b[0]]
    assert pairs
    embed, body = inv.decoder.embed(torch.arange(VOCAB)), inv.decoder.model.base_model
    for (t, before, loss), (_, after, _) in pairs:
        proxy = before.requires_grad_()
        hidden = body(inputs_embeds=torch.cat([embed[truth[0][:t]], proxy[None]])[None]).last_hidden_state[0, -1]
        squares = (hidden - state.hidden[t]).square().sum()
        (grad,) = torch.autograd.grad(squares, proxy)
        assert squares.item() / len(grad) == pytest.approx(loss, rel=1e-3)
        expected = before.detach() - grad / grad.norm().clamp_min(1.0)
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("every", [1, 3])
def test_a_proxy_is_projected_every_so_many_steps(every, monkeypatch):
    seen = set()
    nearest = per_step._Proposer._nearest

    def watched(self, slots, value, count):
        seen.update((self.proxies.step[slots] - self.project_from).tolist())
        return nearest(self, slots, value, count)

    monkeypatch.setattr(per_step._Proposer, "_nearest", watched)
    inv = inverter("llama")
    strategy = PerStepProjection(candidates_per_step=1, growth=1, max_steps=12, rest_block=None, project_every=every)
    inv.invert(inv.capture(texts(6, 4, seed=2)), strategy)
    assert max(seen) >= 2 * every, "some position took several projections"
    assert all(step % every == 0 for step in seen)


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
