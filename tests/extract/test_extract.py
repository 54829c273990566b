"""Extraction from a model in this process, behind every kind of restriction; the oracle is its own logits."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from invert_fast import InputError
from invert_fast.extract import (
    Answer,
    ApiError,
    Client,
    Image,
    LocalApi,
    Query,
    Restrictions,
    Settings,
    extract,
    image_of,
    probe,
)
from invert_fast.extract.output import write
from invert_fast.extract.simultaneous import share

from .truth import EVERY_16TH, PROMPT, check, truth


class Hiding:
    """An API that samples, and tells no list where the token that it drew ends the text."""

    def __init__(self, api: LocalApi, hidden: set[int]):
        self.api, self.hidden, self.lists = api, hidden, 0
        self.name, self.vocab_size, self.names, self.untellable = api.name, api.vocab_size, api.names, api.untellable

    def ask(self, query: Query) -> Answer:
        answer = self.api.ask(query)
        self.lists += query.top > 0
        hidden = query.top > 0 and self.lists - 1 in self.hidden
        return Answer(answer.token) if hidden else answer


@pytest.mark.parametrize("hidden", [{0}, {1}, {0, 1}, {2, 3}, {3}, {3, 4, 5}], ids=str)
@pytest.mark.parametrize(
    "rules", [Restrictions(temperature=1.0), Restrictions(top=5, temperature=1.0)], ids=["full", "top"]
)
def test_a_list_that_the_end_of_a_text_hides_is_asked_for_again(inverter, rules, hidden):
    api = Hiding(LocalApi(inverter, rules), hidden)
    found = extract(Client(api), PROMPT, Settings(tokens=tuple(range(64))), bar=False)
    assert found.complete
    assert found.stopped is None
    assert check(found, truth(inverter), len(found.known)) <= found.bound <= 1e-4


@pytest.mark.parametrize(
    ("rules", "method", "per_token", "error"),
    [
        (Restrictions(), "one-call", 1 / 4096, 1e-4),
        (Restrictions(top=5), "exact", 1 / 4, 1e-4),
        (Restrictions(top=20, bias_limit=100, refuse=True, bias_entries=300), "exact", 1 / 19, 1e-4),
        (Restrictions(top=5, temperature=1.0), "exact", 1 / 4, 1e-4),
        (Restrictions(top=5, after_bias=False), "chosen", 1.0, 1e-4),
        (Restrictions(top=1), "one-of-k", 2.0, 4e-4),
        (Restrictions(top=0), "simultaneous", 2.4, 1e-3),
    ],
    ids=["full", "top-5", "clamped", "sampled", "before-bias", "top-1", "argmax-only"],
)
def test_the_whole_vector_by_the_cheapest_method(inverter, rules, method, per_token, error):
    found = extract(Client(LocalApi(inverter, rules)), PROMPT, bar=False)
    assert found.method == method
    assert found.complete
    assert found.normalised
    assert check(found, truth(inverter), 4096) <= found.bound <= error
    spent = found.queries - found.probe_queries
    assert spent <= 1.02 * per_token * 4096 + 3
    assert spent >= 0.99 * found.theory  # a number below theory would be a wrong count


@pytest.mark.parametrize("method", ["bisection", "simultaneous"])
def test_argmax_alone_gives_differences_for_some_tokens(inverter, method):
    settings = Settings(method, 1e-3, tokens=EVERY_16TH)
    found = extract(Client(LocalApi(inverter, Restrictions(top=0))), PROMPT, settings, bar=False)
    assert not found.normalised  # the rest of the mass is unknown
    assert check(found, truth(inverter), 257) <= 5e-4  # the reference is known as well
    per_token = (found.queries - found.probe_queries) / 256
    assert per_token < (18 if method == "bisection" else 4)


def test_threads_find_the_same(inverter):
    settings = Settings(tokens=EVERY_16TH)
    found = extract(Client(LocalApi(inverter, Restrictions(top=0)), parallel=4), PROMPT, settings, bar=False)
    assert check(found, truth(inverter), 257) <= 5e-4


@pytest.mark.parametrize("rules", [Restrictions(top=5), Restrictions(top=0), Restrictions(top=400, bias=False)])
def test_a_known_unembedding_needs_only_the_width_of_the_state(inverter, rules):
    image = image_of(inverter)
    found = extract(Client(LocalApi(inverter, rules)), PROMPT, Settings(precision=5e-3), image=image, bar=False)
    assert found.complete
    assert "unembedding" in found.method
    assert check(found, truth(inverter), 4096) <= 1e-3
    assert found.queries - found.probe_queries <= (1300 if rules.top == 0 else 90)


def test_another_models_unembedding_is_noticed(inverter):
    image = image_of(inverter)
    wrong = Image(image.weight[np.random.default_rng(0).permutation(4096)])
    with pytest.raises(InputError, match="another model"):
        extract(Client(LocalApi(inverter, Restrictions(top=5))), PROMPT, image=wrong, bar=False)


def test_tokens_that_come_back_as_text(inverter):
    """Byte fragments share the text U+FFFD: they are kept apart by being raised one at a time."""
    rules = Restrictions(top=5, strings=True)
    found = extract(Client(LocalApi(inverter, rules)), PROMPT, bar=False)
    assert found.complete
    assert check(found, truth(inverter), 4096) < 1e-4
    some = (*range(90, 140), 4095)
    rules = Restrictions(top=0, strings=True)
    found = extract(Client(LocalApi(inverter, rules)), PROMPT, Settings(tokens=some), bar=False)
    assert check(found, truth(inverter), len(some) + 1) < 1e-3


def test_the_probe_sees_what_is_there(inverter):
    def seen(**rules):
        return probe(Client(LocalApi(inverter, Restrictions(**rules))), PROMPT)

    found = seen(top=7, after_bias=False, chosen=False, bias_limit=60, bias_entries=300)
    assert (found.top, found.bias, found.after_bias, found.chosen, found.sampled) == (7, True, False, False, False)
    assert found.bias_limit == 50  # the largest size tried below the clamp
    assert found.bias_entries == 300
    assert seen(top=5).after_bias
    assert seen(top=5, after_bias=False).chosen
    assert not seen(top=5, bias=False).bias
    assert seen(top=0, temperature=0.05).sampled  # a peaked sample looks like an argmax, except at a threshold
    assert not seen(top=0).sampled
    assert seen(top=20, noise=1e-2).noise > 1e-3
    assert seen(top=5, decimals=3).resolution == pytest.approx(5e-4)
    assert seen(top=1, decimals=2).resolution == pytest.approx(5e-3)
    assert seen(top=5).resolution == 0
    assert seen(top=5, strings=True).names == "strings"


@pytest.mark.parametrize("rules", [Restrictions(top=5, noise=1e-3), Restrictions(top=5, decimals=3)])
def test_noise_and_rounding_are_in_the_stated_bound(inverter, rules):
    found = extract(Client(LocalApi(inverter, rules)), PROMPT, bar=False)
    assert 1e-3 < found.bound < 5e-2
    check(found, truth(inverter), 4096)


def test_what_cannot_be_had_is_said(inverter):
    with pytest.raises(InputError, match="not enough for any method"):
        extract(Client(LocalApi(inverter, Restrictions(top=0, temperature=1.0))), PROMPT, bar=False)
    with pytest.raises(InputError, match="use chosen or"):
        extract(Client(LocalApi(inverter, Restrictions(top=5, after_bias=False))), PROMPT, Settings("exact"), bar=False)
    found = extract(Client(LocalApi(inverter, Restrictions(top=20, bias=False))), PROMPT, bar=False)
    assert (found.method, found.complete, len(found.known)) == ("top", False, 20)
    assert "never told" in (found.stopped or "")
    found = extract(
        Client(LocalApi(inverter, Restrictions(top=0, bias_limit=12))), PROMPT, Settings(tokens=EVERY_16TH), bar=False
    )
    assert not found.complete  # a clamp below the largest gaps
    beyond = np.intersect1d(np.flatnonzero(truth(inverter).max() - truth(inverter) > 12), EVERY_16TH)
    assert len(beyond)
    assert np.isnan(found.log_probs[beyond]).all()
    check(found, truth(inverter), len(found.known))


def test_an_argmax_with_noise_is_refused_at_a_precision_it_does_not_have(inverter):
    api = LocalApi(inverter, Restrictions(top=0, noise=1e-3))
    with pytest.raises(ApiError, match="not deterministic"):
        extract(Client(api), PROMPT, Settings(precision=1e-3, tokens=EVERY_16TH), bar=False)


@pytest.mark.parametrize("prompt", ["", tuple([1] * 2000), (5000,)])
def test_prompts_without_a_next_token_are_refused(inverter, prompt):
    with pytest.raises(InputError, match=r"prompt has|outside"):
        extract(Client(LocalApi(inverter)), prompt, bar=False)


def test_output_has_the_layout_of_logits_files(inverter, tmp_path):
    api, path = LocalApi(inverter), tmp_path / "log_probs.safetensors"
    full = [extract(Client(api), prompt, bar=False) for prompt in (PROMPT, "A")]
    write(path, [full[0], None, full[1]], api.name, "fingerprint")
    tensors = load_file(path)
    assert tensors["values"].shape == (2, 4096)
    assert tensors["offsets"].tolist() == [0, 1, 1, 2]
    assert np.abs(tensors["values"][0] - truth(inverter)).max() < 1e-5
    assert "ids" not in tensors
    some = [extract(Client(LocalApi(inverter, Restrictions(top=top, bias=False))), PROMPT, bar=False) for top in (5, 9)]
    write(path, some, api.name)
    tensors = load_file(path)
    assert tensors["ids"].shape == tensors["values"].shape == tensors["error"].shape == (2, 5)
    assert (tensors["ids"][0] == tensors["ids"][1]).all()  # the five most likely of both


def test_the_share_of_a_call_is_a_half_for_one_token_and_falls_with_many():
    assert share(1) == pytest.approx(0.5, abs=0.01)
    assert share(2) > share(64) > share(1024)
    assert 1.0 < 1024 * share(1024) < 5.0
