"""Shards come together in order, and only whole: what is missing, doubled, cut, edited or of another run is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from invert_fast.cli.main import main
from invert_fast.storage.ordered import put_in_order
from invert_fast.storage.shards import Shard, begin, check_begun, finish, note_of
from invert_fast.types import InputError

SETTINGS = {"model": "gpt2:0123", "layer": "final_norm", "strategy": "auto"}


def line(index: int, certified: bool = True) -> str:
    """As one of recovered.jsonl, of a text that says what the rest of a line could say."""
    told = {"index": index, "token_ids": [index], "text": f'"certified": true, {index}\u2028', "certified": certified}
    return json.dumps({**told, "status": ["certified"]}, ensure_ascii=False) + "\n"


def shard(folder: Path, part: int, parts: int, texts: int = 10, name: str = "", **settings: str) -> Path:
    """The output of a shard, and its note."""
    output = folder / (name or f"part-{part}.jsonl")
    told = Shard(part, parts, texts, SETTINGS | settings)
    begin(output, told)
    lines = [line(i, i != 5) for i in range(part - 1, texts, parts)]
    output.write_text("".join(lines[::-1]), encoding="utf-8")  # in the order in which they were found
    put_in_order(output)
    finish(output, told)
    return output


def merge(*given: object) -> int:
    return main(["merge", *map(str, given)])


def refused(capsys, *given: object) -> str:
    output = given[-1]
    assert merge(*given[:-1], "--output", output) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not Path(str(output)).exists()
    return said


@pytest.mark.parametrize(("parts", "texts"), [(1, 10), (3, 10), (4, 3), (2, 0)])
def test_shards_come_together_in_order(tmp_path, capsys, parts, texts):
    outputs = [shard(tmp_path, part, parts, texts) for part in range(1, parts + 1)]
    for given in (outputs[::-1], [tmp_path]):  # in any order, or the folder that they are in
        target = tmp_path / f"{len(given)}.all"
        assert merge(*given, "--output", target, "--json") == (1 if texts > 5 else 0)
        assert target.read_text(encoding="utf-8") == "".join(line(i, i != 5) for i in range(texts))
        summary = {"shards": parts, "prompts": texts, "certified": texts - (texts > 5)}
        assert json.loads(capsys.readouterr().out) == summary
        target.unlink()


def test_what_is_not_there_once_is_named(tmp_path, capsys):
    one, two, three = (shard(tmp_path, part, 3) for part in (1, 2, 3))
    target = tmp_path / "all"
    assert "2 of 3 shards are missing (1/3, 3/3)" in refused(capsys, two, target)
    again = shard(tmp_path, 2, 3, name="again.jsonl")
    said = refused(capsys, one, two, again, three, target)
    assert f"shard 2/3 is there twice, {two} and {again}" in said
    note_of(three).unlink()
    assert f"{note_of(three)} does not exist" in refused(capsys, one, two, three, target)
    (tmp_path / "empty").mkdir()
    assert "has no output of a shard" in refused(capsys, tmp_path / "empty", target)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"parts": 4}, ("shards 3", "shards 4")),
        ({"texts": 11}, ("texts 10", "texts 11")),
        ({"strategy": "sipit"}, ("strategy auto", "strategy sipit")),
        ({"preset": "fast"}, ("preset not said", "preset fast")),
    ],
)
def test_shards_of_other_runs_are_named(tmp_path, capsys, other, words):
    one, odd = shard(tmp_path, 1, 3), shard(tmp_path, 2, **{"parts": 3, **other})
    said = refused(capsys, one, odd, tmp_path / "all")
    assert all(word in said for word in (*words, str(one), str(odd)))


def test_partial_and_changed_files_are_named(tmp_path, capsys):
    one, two, target = shard(tmp_path, 1, 2), shard(tmp_path, 2, 2), tmp_path / "all"
    whole, note = two.read_bytes(), note_of(two).read_bytes()
    two.write_bytes(whole[:-7])
    assert f"{two} (shard 2/2) has {len(whole) - 7} bytes, expected {len(whole)}" in refused(capsys, one, two, target)
    two.write_bytes(whole.replace(b'"certified": false', b'"certified": true '))
    assert "SHA-256" in refused(capsys, one, two, target)
    lines = whole.splitlines(keepends=True)
    two.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    assert "text 1 is not where it was" in refused(capsys, one, two, target)
    two.write_bytes(whole)
    begin(two, Shard(2, 2, 10, SETTINGS))  # as a run that was ended leaves it
    assert "(shard 2/2) is not finished" in refused(capsys, one, two, target)
    for damage in (
        b"",
        b"{}",
        b"[1]",
        note[:40],
        note.replace(b'"part": 2', b'"part": -2'),
        note.replace(b"2", b'"x"'),
    ):
        note_of(two).write_bytes(damage)
        assert f"{note_of(two)} is damaged or no note" in refused(capsys, one, two, target)
    note_of(two).write_bytes(note)
    assert merge(one, two, "--output", target) == 1
    assert list(tmp_path.glob(".*")) == []


def test_an_output_that_exists_is_kept(tmp_path, capsys):
    one, target = shard(tmp_path, 1, 1), tmp_path / "all"
    target.write_text("precious")
    assert merge(one, "--output", target) == 2
    assert "exists" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_another_shard_is_not_gone_on_with(tmp_path):
    output = shard(tmp_path, 1, 3)
    check_begun(output, Shard(1, 3, 10, SETTINGS))
    check_begun(tmp_path / "new", Shard(1, 3, 10, SETTINGS))
    for other, word in (
        (Shard(2, 3, 10, SETTINGS), "shard 2/3"),
        (Shard(1, 3, 10, SETTINGS | {"model": "other"}), "model other"),
    ):
        with pytest.raises(InputError, match=word):
            check_begun(output, other)


def test_lines_are_put_in_order_and_stay_who_may_read_them(tmp_path):
    path, link = tmp_path / "found.jsonl", tmp_path / "link.jsonl"
    path.write_text("".join(line(i) for i in (3, 0, 12, 2)), encoding="utf-8")
    os.chmod(path, 0o600)
    link.symlink_to(path)
    put_in_order(link)
    assert path.read_text(encoding="utf-8") == "".join(line(i) for i in (0, 2, 3, 12))
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_ino
    put_in_order(path)
    assert path.stat().st_ino == before, "what is in order is left alone"
