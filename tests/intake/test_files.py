"""Files of states as people have them: found, cut into texts, and refused in one line where they cannot be states."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from invert_fast import InputError
from invert_fast.intake.files import named_layer, open_source
from invert_fast.model.layer import Layer
from invert_fast.storage.joined import Joined, parts_of

BLOCKS, WIDTH = 2, 8
LAYER = Layer(1, BLOCKS)
BATCH = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
TEXTS = [BATCH[0, :3], BATCH[1, 2:], BATCH[2]]
IDS = torch.zeros(3, 5).long()


def arrays(**tensors: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def hidden() -> tuple[torch.Tensor, ...]:
    """As output_hidden_states=True gives it; the layer that is asked for is in the middle."""
    return (BATCH + 1, BATCH, BATCH + 2)


def generated() -> tuple[tuple[torch.Tensor, ...], ...]:
    return tuple(tuple(h[2:, part] for h in hidden()) for part in (slice(0, 4), slice(4, 5)))


FILES = {
    "rows.safetensors": (lambda p: save_file({"anything": TEXTS[0].contiguous()}, p), TEXTS[:1]),
    "batch.safetensors": (lambda p: save_file({"h": BATCH, "attention_mask": MASK, "input_ids": IDS}, p), TEXTS),
    "whole.safetensors": (lambda p: save_file({"h": BATCH}, p), list(BATCH)),
    "layers.safetensors": (lambda p: save_file({"h": torch.stack(hidden()), "attention_mask": MASK}, p), TEXTS),
    "masked.safetensors": (lambda p: save_file({"h": BATCH[0], "attention_mask": MASK[0]}, p), TEXTS[:1]),
    "rows.npy": (lambda p: np.save(p, TEXTS[0].numpy()), TEXTS[:1]),
    "batch.npy": (lambda p: np.save(p, BATCH.numpy()), list(BATCH)),
    "fortran.npy": (lambda p: np.save(p, np.asfortranarray(TEXTS[2].numpy())), TEXTS[2:]),
    "swapped.npy": (lambda p: np.save(p, TEXTS[2].numpy().astype(">f8")), TEXTS[2:]),
    "batch.npz": (lambda p: np.savez(p, **arrays(states=BATCH, attention_mask=MASK, ids=IDS)), TEXTS),
    "packed.npz": (lambda p: np.savez_compressed(p, **arrays(states=BATCH, attention_mask=MASK.bool())), TEXTS),
    "rows.pt": (lambda p: torch.save(TEXTS[0], p), TEXTS[:1]),
    "list.pt": (lambda p: torch.save(TEXTS, p), TEXTS),
    "batch.pt": (lambda p: torch.save({"h": BATCH, "attention_mask": MASK, "input_ids": IDS}, p), TEXTS),
    "layers.pt": (lambda p: torch.save(hidden(), p), list(BATCH)),
    "output.pth": (lambda p: torch.save({"hidden_states": hidden(), "attention_mask": MASK, "logits": IDS}, p), TEXTS),
    "generated.pt": (lambda p: torch.save(generated(), p), [BATCH[2]]),
    "old.pt": (lambda p: torch.save({"h": BATCH}, p, _use_new_zipfile_serialization=False), list(BATCH)),
    "named.safetensors": (lambda p: torch.save(TEXTS[0], p), TEXTS[:1]),
}  # fmt: skip


def rows(source) -> list[torch.Tensor]:
    found = [source.states(i, LAYER.name).hidden for i in range(len(source.lengths()))]
    assert [*map(len, found)] == source.lengths()
    return found


def same(found, wanted) -> bool:
    return [r.tolist() for r in found] == [r.tolist() for r in wanted]


def refused(path, tensor=None) -> str:
    def read():
        source = open_source(path, LAYER, tensor)
        source.check_finite()
        rows(source)

    with pytest.raises(InputError) as error:
        read()
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    assert ":" in message, "what to do?"
    return message


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind(name, tmp_path):
    save, wanted = FILES[name]
    save(tmp_path / name)
    source = open_source(tmp_path / name, LAYER)
    source.check_finite()
    assert same(rows(source), wanted)
    assert source.head(LAYER.name).hidden.shape == (0, WIDTH)
    assert named_layer(tmp_path / name) is None


def test_bf16_comes_through_numpy(tmp_path):
    coarse = TEXTS[0].bfloat16()
    np.save(tmp_path / "a.npy", coarse.view(torch.int16).numpy().view("V2"))
    save_file({"h": coarse.contiguous()}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        states = open_source(tmp_path / name, LAYER).states(0, LAYER.name)
        assert (states.dtype, states.hidden.tolist()) == ("bfloat16", coarse.tolist())


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
def test_which_of_several_tensors_is_asked_for_by_name(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    tensors = {"text_10": TEXTS[2], "text_2": TEXTS[0].contiguous(), "other": torch.zeros(1, WIDTH)}
    save = {"safetensors": save_file, "npz": lambda t, p: np.savez(p, **arrays(**t)), "pt": torch.save}[ending]
    save(tensors, path)
    for message in (refused(path), refused(path, "absent"), refused(path, "absent_*")):
        assert all(name in message for name in tensors)
        assert f"float32 [5, {WIDTH}]" in message
    assert same(rows(open_source(path, LAYER, "text_2")), TEXTS[:1])
    assert same(rows(open_source(path, LAYER, "text_*")), [TEXTS[0], TEXTS[2]])


def test_a_folder_is_its_files_in_order(tmp_path):
    np.save(tmp_path / "part10.npy", TEXTS[2].numpy())
    torch.save(TEXTS[:2], tmp_path / "part9.pt")
    save_file({"h": BATCH}, tmp_path / "part1.safetensors", {"layer": "block:0"})
    (tmp_path / "notes.txt").write_text("no states")
    source = open_source(tmp_path, LAYER)
    assert isinstance(source, Joined)
    assert same(rows(source), [*BATCH, TEXTS[0], TEXTS[1], TEXTS[2]])
    assert [name for name, _ in parts_of(source)] == ["part1.safetensors", "part9.pt", "part10.npy"]
    assert [source.part(i) for i in range(6)] == [0, 0, 0, 1, 1, 2]
    assert named_layer(tmp_path) == "block:0"
    (tmp_path / "part2.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(InputError, match=r"part2\.npy"):
        open_source(tmp_path, LAYER)


def holes(path):
    save_file({"h": BATCH, "attention_mask": torch.tensor([[1, 0, 1, 1, 1]] * 3)}, path)


def bomb(path):
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("a.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 24, WIDTH)})
        for _ in range(1 << 5):
            file.write(bytes(1 << 24))


def lying(path):
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, WIDTH)})


REFUSED = {
    "empty.npy": (lambda p: p.write_bytes(b""), ["cut short"]),
    "objects.npy": (lambda p: np.save(p, np.array([{}], dtype=object)), ["Python objects"]),
    "objects.npz": (lambda p: np.savez(p, a=np.array([{}], dtype=object)), ["Python objects"]),
    "huge.npy": (lambda p: p.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"{" * 64), ["damaged"]),
    "huge.safetensors": (lambda p: p.write_bytes(b"\xff\xff\xff\xff\xff\xff\xff\x7f{"), ["cut short"]),
    "lying.npz": (lying, ["0 bytes"]),
    "bomb.npz": (bomb, ["unpack"]),
    "not.npz": (lambda p: p.write_bytes(b"PK\x03\x04 and nothing"), ["damaged"]),
    "nothing.safetensors": (lambda p: save_file({}, p), ["nothing"]),
    "ids.npy": (lambda p: np.save(p, IDS.numpy()), ["int64", "floats"]),
    "deep.npy": (lambda p: np.save(p, np.zeros((1, 1, 1, 1, WIDTH))), ["[1, 1, 1, 1, 8]"]),
    "layers.npy": (lambda p: np.save(p, np.zeros((7, 1, 2, WIDTH))), ["7 entries", "expected 3"]),
    "holes.safetensors": (holes, ["text 0", "zeros between"]),
    "mask.safetensors": (lambda p: save_file({"h": BATCH, "attention_mask": MASK[:2]}, p), ["[2, 5]", "[3, 5]"]),
    "nan.pt": (lambda p: torch.save([TEXTS[0], TEXTS[1] * float("nan")], p), ["text 1, row 0", "NaN"]),
    "none.pt": (lambda p: torch.save([], p), ["no texts"]),
    "model.pt": (lambda p: torch.save(torch.nn.Linear(2, 2), p), ["pickle", "torch.nn.modules.linear.Linear"]),
    "ids.pt": (lambda p: torch.save({"input_ids": IDS}, p), ["input_ids int64 [3, 5]"]),
    "plain.pt": (lambda p: p.write_bytes(pickle.dumps(print, 2)), ["pickle"]),
    "array.pkl": (lambda p: p.write_bytes(pickle.dumps(TEXTS[0].numpy())), ["pickle"]),
    "absent.npy": (lambda p: None, ["does not exist"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_and_mistaken_files_are_refused_in_one_line(name, tmp_path):
    save, words = REFUSED[name]
    save(tmp_path / name)
    message = refused(tmp_path / name)
    assert all(word in message for word in words), message


def test_an_empty_folder_says_what_it_looks_for(tmp_path):
    assert ".safetensors" in refused(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_never_crash(tmp_path, data):
    name = data.draw(
        st.sampled_from(["batch.npy", "batch.npz", "packed.npz", "batch.pt", "old.pt", "batch.safetensors"])
    )
    path = tmp_path / name
    FILES[name][0](path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        source = open_source(path, LAYER)
        source.check_finite()
        assert all(found.shape[1] == source.head(LAYER.name).hidden.shape[1] for found in rows(source))
    except InputError:
        return
