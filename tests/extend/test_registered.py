"""Strategies, lenses and op backends by name: the built-in ones, and those that an installed package adds by entry
points. The package is in `package/`, and is installed by pip."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from invert_fast import Chain, Continuous, InputError, Inverter, Speculative, ops
from invert_fast.cli.main import main
from invert_fast.extend import auto, using
from invert_fast.lazy import _installed
from invert_fast.lens import LENSES, LinearLens, choose_lens
from invert_fast.ops import native
from invert_fast.ops.outside import BACKENDS, _made
from invert_fast.strategies.registry import BUILT_IN, STRATEGIES, names, strategy_named

from ..families import exact, make, texts

PACKAGE = Path(__file__).parent / "package"
PACKED = native.has("linear")
TEXTS = ["The mayor opened the bridge on Tuesday.", "x = max(rows, key=len)"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder that the package was installed into, by pip."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source)  # a build writes beside what it builds
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, text=True)
    return target


def _forget() -> None:
    _installed.cache_clear()
    for registry in (STRATEGIES, LENSES, BACKENDS):
        vars(registry).pop("points", None)


@pytest.fixture
def installed(site, monkeypatch):
    """The package can be imported, and nobody has looked yet what there is."""
    monkeypatch.syspath_prepend(str(site))
    _forget()
    yield
    _forget()
    _made.clear()
    sys.modules.pop("of_others", None)


def test_every_built_in_strategy_is_made_by_its_name():
    assert names()[: len(BUILT_IN)] == tuple(BUILT_IN)
    for name in BUILT_IN:
        assert strategy_named(name).name == name
    assert strategy_named("continuous") == Continuous.baseline()
    given = Chain(Continuous(), name="mine")
    assert strategy_named(given) is given
    with pytest.raises(InputError, match=r"'best' is unknown, expected one of auto, speculative, .*exhaustive"):
        strategy_named("best")


def test_a_strategy_of_another_package_recovers_texts(installed):
    assert names()[len(BUILT_IN) :] == ("backwards", "broken", "hollow", "needy")
    assert strategy_named("backwards").name == "backwards"
    truth, inverter = texts(5, 1, 3), Inverter(make("llama"))
    found = inverter.invert(inverter.capture(truth), "backwards")
    assert exact(found, truth)
    assert found[0].rank.tolist() == [299 - token for token in truth[0]]


def test_a_package_does_not_replace_what_is_built_in(installed):
    assert isinstance(strategy_named("auto"), Chain)


@pytest.mark.parametrize(
    ("name", "said"), [("broken", "missing"), ("needy", "argument"), ("hollow", r"a Hollow, expected an object with")]
)
def test_a_strategy_that_cannot_be_made_names_its_package(installed, name, said):
    with pytest.raises(InputError, match=rf"'{name}' of of-others 1\.2 .*{said}"):
        strategy_named(name)


def test_the_command_line_offers_it(site, tmp_path, monkeypatch):
    prompts, states = tmp_path / "prompts.txt", tmp_path / "states.safetensors"
    prompts.write_text("The tea is cold.\n")
    assert main(["capture", "--model", "bundled", "--input", str(prompts), "--output", str(states)]) == 0
    monkeypatch.setenv("PYTHONPATH", str(site))
    command = [sys.executable, "-m", "invert_fast", "invert", "--model", "bundled", str(states), "--json"]
    command += ["--output", str(tmp_path / "found.jsonl"), "--strategy", "backwards"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategy"] == "backwards"
    assert json.loads((tmp_path / "found.jsonl").read_text())["text"] == "The tea is cold."


def test_lens_is_an_option_of_what_drafts(tmp_path, capsys):
    command = ["invert", "--model", "bundled", "none.safetensors", "--output", str(tmp_path / "found.jsonl")]
    assert main([*command, "--lens", "linear", "--strategy", "prior"]) == 2
    assert "--strategy auto or speculative, not prior" in capsys.readouterr().err


def test_a_lens_of_another_package_drafts_what_the_engine_certifies(installed, small_fits, tmp_path):
    assert LENSES.names() == ("auto", "linear", "learned", "blind", "ridge")
    inverter = Inverter.from_pretrained("bundled")
    states = inverter.capture(TEXTS)
    found = inverter.invert(states, Speculative(lens="ridge"))
    assert [one.text for one in found] == TEXTS
    assert all(one.certified for one in found)
    lens = choose_lens(inverter.decoder, inverter.vocabulary, "ridge", "float32")
    assert lens.kind == "ridge"
    drafts = lens.draft(states[0].hidden[None])[0]
    right = (drafts == torch.tensor(inverter.encode(TEXTS[0], special=True))).float().mean()
    assert right > 0.25, "of 4,096 tokens"
    ids, scores = lens.lists(lens.proxies(states[0].hidden[None]))
    assert torch.equal(ids[..., 0], drafts[None])
    assert bool((scores.diff(dim=-1) <= 0).all())
    assert isinstance(choose_lens(inverter.decoder, inverter.vocabulary, "linear"), LinearLens)
    with pytest.raises(InputError, match=r"'blind' of of-others 1\.2 has no kind, vocabulary, .*row_bias"):
        inverter.invert(states, auto("blind"))
    file, output = tmp_path / "states.safetensors", tmp_path / "found.jsonl"
    save_file({"states": states[0].hidden}, file)
    assert main(["invert", "--model", "bundled", str(file), "--output", str(output), "--lens", "ridge"]) == 0
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == TEXTS[:1]


def test_a_backend_of_another_package_computes_passes_within_using(installed):
    truth, inverter = texts(5, 2, 6), Inverter(make("gpt2"))
    states = inverter.capture(truth)
    with using("counting") as backend:
        assert exact(inverter.invert(states), truth)
        assert set(backend.calls) == {"gelu", "prefix_attention", "linear"} - ({"linear"} if not PACKED else set())
    before = dict(backend.calls)
    assert exact(inverter.invert(states), truth)
    assert dict(backend.calls) == before
    ops.gelu(torch.ones(3), backend="counting")
    assert backend.calls["gelu"] == before["gelu"] + 1


def test_a_backend_that_is_not_its_reference_is_refused(installed, caplog):
    with pytest.raises(InputError, match=r"'careless' is not used for gelu in torch.float32 on cpu.*off by 0.0004"):
        ops.gelu(torch.ones(3), backend="careless")
    truth, inverter = texts(5, 2, 6), Inverter(make("gpt2"))
    states = inverter.capture(truth)
    with using("careless"), pytest.raises(InputError, match="careless"):
        inverter.invert(states)
    with using("careless"):  # before the model is loaded: its trial goes another way
        other = Inverter(make("gpt2"))
        assert "careless" in caplog.text
        assert exact(other.invert(states), truth)
    with (
        pytest.raises(InputError, match=r"'shapeless' of of-others 1\.2 is a Hollow, expected .*function"),
        using("shapeless"),
    ):
        pass
