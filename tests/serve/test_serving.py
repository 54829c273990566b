"""What a server answers is what `Inverter.invert` finds, whoever else asks at the same time."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save

from invert_fast import InputError, Noise, States, Status
from invert_fast.cli.demo import sentences
from invert_fast.cli.main import main
from invert_fast.serve import Client, ServeError
from invert_fast.serve.client import packed
from invert_fast.storage.precisions import codes_of

from .conftest import TYPE, metric, nonsense, until


def lines(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_lines_are_those_that_the_command_writes(server, inverter, tmp_path):
    states, output = tmp_path / "s.safetensors", tmp_path / "r.jsonl"
    body = packed(inverter.capture(sentences()[:3], store_dtype="bfloat16"))
    states.write_bytes(body)
    assert main(["invert", "--model", "bundled", "--device", "cpu", str(states), "--output", str(output)]) == 0
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    *answered, last = lines(httpx.post(f"{server.url}/v1/invert", content=body, headers=TYPE))
    timed = {"seconds", "residual", "margin"}  # the last two to rounding, which follows how texts share calls
    assert [row.keys() for row in answered] == [row.keys() for row in written]
    assert sorted((row["index"], row["text"]) for row in answered) == [*enumerate(sentences()[:3])]
    by_index = {row["index"]: row for row in written}
    for row in answered:
        same = by_index[row["index"]]
        assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in same.items() if k not in timed}
        np.testing.assert_allclose(row["residual"], same["residual"], rtol=1e-2)
    assert last.pop("seconds") > 0
    tokens, forward = sum(len(row["token_ids"]) for row in answered), sum(row["forward_tokens"] for row in answered)
    assert last == {"done": True, "texts": 3, "tokens": tokens, "certified": 3, "forward_tokens": forward}


def test_many_at_once_get_what_each_would_get_alone(server, inverter):
    """Texts of all lengths, two precisions, one that is no text, one without tokens: in eight clients' requests."""
    texts = sentences()[:16]
    requests = [inverter.capture([texts[i], texts[i + 8]], max_tokens=5 + 7 * i) for i in range(6)]
    requests.append([States(s.hidden.bfloat16(), s.layer) for s in inverter.capture(texts[3:7])])
    requests.append([*inverter.capture([texts[0], ""]), States(nonsense(1))])
    alone = [inverter.invert(states) for states in requests]
    before = metric(server, "invert_fast_tokens_total")

    def ask(number: int) -> list:
        with Client(server.url) as client:
            return [sorted(client.invert(requests[number]), key=lambda found: found.index) for _ in range(2)]

    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(ask, range(len(requests))))
    for rounds, expected in zip(together, alone, strict=True):
        for found in rounds:
            assert [one.token_ids for one in found] == [r.token_ids.tolist() for r in expected]
            assert [one.text for one in found] == [r.text for r in expected]
            assert [one.certified for one in found] == [r.certified for r in expected]
            assert [one.first_failure for one in found] == [r.first_failure for r in expected]
    assert not all(r.certified for r in alone[-1])
    tokens = sum(len(states) for request in requests for states in request)
    assert metric(server, "invert_fast_tokens_total") - before == 2 * tokens


def test_noise_is_what_the_request_or_its_body_says_it_is(client, inverter):
    """Beside exact states: nothing of the one kind meets the other's tolerances."""
    exact, noise, generator = (
        inverter.capture(sentences()[:3]),
        Noise("gaussian", 0.3),
        torch.Generator().manual_seed(0),
    )
    loud = []
    for states in exact:
        level = states.hidden.square().mean(-1, keepdim=True).sqrt()
        loud.append(states.hidden + 0.3 * level * torch.randn(states.hidden.shape, generator=generator))
    alone = inverter.invert([States(rows, noise=noise) for rows in loud])
    asked = (
        lambda: client.invert([States(rows, noise=noise) for rows in loud]),
        lambda: client.invert(loud, noise=noise.spec),
        lambda: client.invert(exact),
    )
    with ThreadPoolExecutor(3) as pool:
        *noisy, sure = pool.map(lambda ask: sorted(ask(), key=lambda found: found.index), asked)
    assert all(found.certified for found in sure)
    for answered in noisy:
        assert [found.token_ids for found in answered] == [r.token_ids.tolist() for r in alone]
        assert [found.status for found in answered] == [[Status(int(s)).label for s in r.status] for r in alone]
    with pytest.raises(InputError, match="of 2 precisions and kinds of noise"):
        next(client.invert([States(loud[0], noise=noise), States(loud[1])]))


def test_a_text_comes_when_it_is_found_and_a_client_that_leaves_frees_its_lanes(server, client, inverter):
    (states,) = inverter.capture(sentences()[:1])
    body = save({"long": nonsense(), "short": states.hidden})
    with httpx.stream("POST", f"{server.url}/v1/invert", content=body, headers=TYPE, timeout=60) as answer:
        stream = answer.iter_lines()
        found = json.loads(next(stream))
        assert (found["source"], found["text"]) == ("short", sentences()[0])
        assert metric(server, "invert_fast_running_texts") == 1
        assert metric(server, "invert_fast_requests_in_progress") == 1
        assert metric(server, "invert_fast_held_bytes") == len(body)
        (other,) = client.invert(states)  # beside it, and before it
        assert other.certified
    until(lambda: metric(server, "invert_fast_running_texts") == 0)  # it would have run for minutes
    assert metric(server, "invert_fast_requests_in_progress") == 0
    assert metric(server, "invert_fast_held_bytes") == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: ({"hidden": torch.cat([a, b]), "offsets": torch.tensor([0, len(a), len(a) + len(b)])}, ""),
        lambda a, b: ({"text_2": a, "text_10": b}, ""),
        lambda a, b: ({"text_2": a, "other": torch.zeros(3, 7), "text_10": b}, "?tensor=text_*"),
        lambda a, b: (
            {
                "x": torch.nn.utils.rnn.pad_sequence([a, b], batch_first=True),
                "attention_mask": (torch.arange(max(len(a), len(b))) < torch.tensor([[len(a)], [len(b)]])).long(),
            },
            "",
        ),
    ],
    ids=["packed", "named", "a pattern", "a batch"],
)
def test_texts_come_in_every_form(server, inverter, make):
    a, b = (s.hidden for s in inverter.capture(sentences()[:2]))
    tensors, query = make(a, b)
    *found, last = lines(httpx.post(f"{server.url}/v1/invert{query}", content=save(tensors), headers=TYPE))
    assert sorted((row["index"], row["text"]) for row in found) == [*enumerate(sentences()[:2])]
    assert last["certified"] == 2


def test_precision_is_that_of_the_numbers_or_what_is_said(server, inverter):
    (states,) = inverter.capture(sentences()[:1])
    rounded = states.hidden.bfloat16()
    with Client(server.url) as client:
        assert next(client.invert(rounded)).certified
        assert next(client.invert(rounded.float())).certified  # fp32 numbers that all are bf16 ones
        (coarse,) = client.invert(states, states_dtype="bfloat16")
        assert coarse.certified
        (fine,) = client.invert(rounded.float() + 1e-9, states_dtype="float32", compute_dtype="float32")
        assert not fine.certified


def test_codes_come_as_capture_writes_them(server, inverter):
    (states,) = inverter.capture(sentences()[:1])
    codes, scale = codes_of(states.hidden, "fp8_e4m3")
    body = save({"hidden": codes, "hidden_scale": scale}, {"dtype": "fp8_e4m3", "compute_dtype": "float32"})
    with Client(server.url) as client:  # which has patience: this precision is measured first
        (found,) = client.invert(body)
    assert (found.text, found.certified) == (sentences()[0], True)
    odd = save({"hidden": states.hidden[None], "attention_mask": torch.ones(1, len(states), dtype=torch.complex64)})
    answer = httpx.post(f"{server.url}/v1/invert", content=odd, headers=TYPE)
    assert answer.status_code == 422
    assert "C64" in answer.json()["detail"]


def test_nothing_is_asked_of_a_request_without_texts(server):
    body = save({"hidden": torch.zeros(0, 256), "offsets": torch.zeros(1, dtype=torch.long)})
    (last,) = lines(httpx.post(f"{server.url}/v1/invert", content=body, headers=TYPE))
    assert (last["texts"], last["tokens"], last["certified"]) == (0, 0, 0)


def test_a_bad_request_beside_good_ones_fails_alone(server, inverter):
    (good,) = inverter.capture(sentences()[:1])
    bad = good.hidden.clone()
    bad[3, 5] = float("nan")

    def ask(states) -> object:
        with Client(server.url) as client:
            try:
                return next(client.invert(states)).text
            except ServeError as error:
                return error.status, str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [good, bad, good, good.hidden[:, :255], bad, good]))
    assert [answers[i] for i in (0, 2, 5)] == [sentences()[0]] * 3
    assert answers[1] == answers[4]
    assert answers[1][0] == answers[3][0] == 422
    assert "row 3 has NaN" in answers[1][1]
    assert "255 wide" in answers[3][1]


def test_the_model_and_the_health_are_told(server, client, inverter):
    told = client.model()
    assert (told["model"], told["layer"]) == (inverter.decoder.fingerprint(), "final_norm")
    assert (told["width"], told["longest"]) == (256, inverter.decoder.max_length)
    for path, status in (("healthz", "alive"), ("readyz", "ready")):
        assert httpx.get(f"{server.url}/{path}").json() == {"status": status}
    page = httpx.get(f"{server.url}/metrics").text
    assert 'invert_fast_requests_total{path="/v1/model",status="200"}' in page
    assert page.count("# TYPE invert_fast_request_seconds histogram") == 1


def test_a_call_that_has_the_model_to_itself_holds_up_no_answer_of_another(server, inverter):
    """Such as the calibration of a precision that comes for the first time, which takes minutes on a large model."""
    body = packed(inverter.capture(sentences()[:1]))
    with ThreadPoolExecutor(1) as pool, inverter._turns:
        asked = pool.submit(httpx.post, f"{server.url}/v1/invert", content=body, headers=TYPE, timeout=60)
        wrong = httpx.post(
            f"{server.url}/v1/invert", content=save({"a": torch.zeros(2, 255)}), headers=TYPE, timeout=20
        )
        assert wrong.status_code == 422
        assert httpx.get(f"{server.url}/healthz", timeout=20).json() == {"status": "alive"}
    assert lines(asked.result())[0]["certified"]


def test_the_python_of_the_documentation_runs(server, inverter, capsys):
    document = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    assert "http://127.0.0.1:8017" in code
    exec(code.replace("http://127.0.0.1:8017", server.url), {"states": inverter.capture(sentences()[:1])})
    assert capsys.readouterr().out == f"0 {sentences()[0]} True\n"
