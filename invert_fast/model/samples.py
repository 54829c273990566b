"""A few texts to measure a model on: in several languages, code among them, as its own tokenizer cuts them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..calls.interrupts import raise_interrupt
from .decoder import Decoder
from .load import BUNDLED

PROSE = (
    "The ferry leaves at half past six, so we packed the night before and left the keys with the neighbour downstairs.",
    "Dear Ms Okafor, thank you for your letter of 3 May. Your refund of $412.75 was sent to account 0048-2291 today.",
    "In 1897 the committee measured the height of the dam again and found it eleven centimetres lower than planned.",
    "She asked whether the results could be repeated; nobody in the laboratory had thought of keeping the old samples.",
    "El tren de las ocho llega siempre tarde, pero hoy nadie se quejó porque en el andén tocaba una orquesta pequeña.",
    "Wir haben den Vertrag gestern unterschrieben, obwohl zwei Absätze noch fehlten und der Anwalt im Urlaub war.",
    "La boulangère m'a dit que le pain serait prêt à midi; j'ai donc attendu sur le banc, près de la fontaine.",
    "Сегодня утром снег растаял, и дорога к станции снова стала похожа на реку; автобус ждали почти час.",
    "明天下午三点在图书馆门口见面,请带上身份证和上次借的两本书。如果下雨,就改到地铁站里面。",
    "昨日の会議では新しい予算について話し合いましたが、結論は来週に持ち越されました。",
    "def total(rows, key='price'):\n    return sum(float(row[key]) for row in rows if row.get(key) is not None)\n",
    'for (int i = 0; i < count; ++i) {\n    if (table[i].id != wanted) continue;\n    printf("%s\\n", names[i]);\n}\n',
    "SELECT name, COUNT(*) AS orders FROM customers JOIN orders USING (customer_id) GROUP BY name HAVING orders > 3;",
    '{"user": "mira.k", "token": "9f2c-77ab", "expires": 1735689600, "scopes": ["read", "write"], "active": false}',
    "ok so i tried it twice 😅 and it STILL says error 0x80070057?? anyone else seeing this on the new version...",
    "Mix 200 g flour, 2 eggs and a pinch of salt; rest the dough for 30 min, then roll it out as thinly as you can.",
)
_HELD_OUT = 40  # pages


def sample_texts(decoder: Decoder, allowed: Tensor, count: int, length: int, seed: int) -> Tensor:
    """`[count, length]` ids: a third prose, begun as the tokenizer begins a text; a third random tokens begun so; the
    others begun without. Without a tokenizer all are random. Deterministic from the seed."""
    tokens = allowed.nonzero().flatten().cpu()
    generator = torch.Generator().manual_seed(seed)
    ids = tokens[torch.randint(len(tokens), (count, length), generator=generator)]
    if decoder.tokenizer is None:
        return ids.to(allowed.device)
    opening = opening_of(decoder)
    prose = [i for text in PROSE for i in decoder.encode(text) if i < decoder.usable_ids]
    for row in range(count if prose else 0):
        begun = opening if row % 3 != 2 and length > len(opening) else []
        ids[row, : len(begun)] = torch.tensor(begun, dtype=ids.dtype)
        if row % 3 == 0 or (row % 3 == 2 and row % 2):
            start = int(torch.randint(len(prose), (1,), generator=generator))
            taken = (prose[start:] + prose * (1 + length // len(prose)))[: length - len(begun)]
            ids[row, len(begun) :] = torch.tensor(taken)
    return ids.to(allowed.device)


def opening_of(decoder: Decoder) -> list[int]:
    """The ids that the tokenizer puts before every text: often a BOS, often none."""
    if decoder.tokenizer is None:
        return []
    added = decoder.encode("", special=True)
    return added[:1] if added and added[0] == getattr(decoder.tokenizer, "bos_token_id", added[0]) else []


def opening_of_chat(decoder: Decoder) -> list[int]:
    """The ids before a user's first words where the tokenizer has a chat template, none where it has not."""
    mark = "Δ7f3Δ"
    if decoder.tokenizer is None:
        return []
    try:
        text = decoder.tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        return decoder.encode(text.split(mark)[0])
    except Exception as error:  # there is none, or it has a mind of its own: whatever it does, there are other texts
        raise_interrupt(error)
        return []


def prose_ids(decoder: Decoder) -> list[int]:
    """The package's own texts, `PROSE` and some twenty kilobytes more, as this tokenizer cuts them, one after the
    other; none without a tokenizer."""
    return _ids(decoder, [*_bundled("prose.txt"), *PROSE])


def page_ids(decoder: Decoder, most: int | None = None) -> list[int]:
    """The same of `pages.txt`: some 380 kilobytes of all kinds, in twenty languages, well mixed, that read like a part
    of the web. most: the first so many ids, where not all are needed. The last pages are left out."""
    return _ids(decoder, _bundled("pages.txt")[:-_HELD_OUT], most)


def held_out_page_ids(decoder: Decoder) -> list[int]:
    """The last pages, which nothing is fitted on: for measuring what was fitted on the others."""
    return _ids(decoder, _bundled("pages.txt")[-_HELD_OUT:])


def _ids(decoder: Decoder, texts: Iterable[str], most: int | None = None) -> list[int]:
    found: list[int] = []
    for text in texts if decoder.tokenizer is not None else ():
        if most is not None and len(found) >= most:
            break
        found += [i for i in decoder.encode(text) if i < decoder.usable_ids]
    return found[:most]


def _bundled(name: str) -> list[str]:
    return (BUNDLED / name).read_text(encoding="utf-8").split("\n%\n")
