"""A window of a longer text: which tokens before its first row make it fit."""

from __future__ import annotations

from ..engine.read import behind
from ..model.samples import opening_of
from ..types import Mended, Recovery, Status
from .filling import MOST, Search, by_prior
from .settle import settled
from .work import Work, not_certified, with_lost

_BEHIND = 2  # rows that have to certify behind a front


def mend_front(work: Work, most: int = MOST) -> list[Recovery]:
    """The window, behind up to `most` tokens (and the tokenizer's opening, if it has one) that are searched for."""
    rows, size = work.rows, work.vocabulary.size
    opening = opening_of(work.decoder) or _bos(work)
    full = work.asked(opening, MOST + 1, work.decoder.full())
    order = by_prior(full, work.vocabulary, ())
    for count in range(1, most + 1):
        for begun in [opening, []] if opening else [[]]:
            asked, fits = work.asked(begun, count + 1), work.fits(size ** (count + 1))
            context = work.made(begun, len(begun)) if begun else rows[:0]
            search = Search(asked, work.lens, work.vocabulary, fits, context, rows[0])
            filling = search.fill(order, count, lambda some: by_prior(full, work.vocabulary, some))
            if filling is None:
                continue
            front = [*begun, *filling.ids]
            whole = work.whole(front, rows)
            found = work.inverted(whole)
            if not (found.status[len(front) :][:_BEHIND] == Status.CERTIFIED).all() or len(rows) < _BEHIND:
                continue
            verdict = settled(work, whole, found, len(begun), filling, len(whole))
            found = behind(found, len(front), work.decoder.decode)
            found = found if verdict.trusted else not_certified(found, 0)
            said = f"tokens {', '.join(map(str, front))} stood before the first row"
            if verdict.status != Status.CERTIFIED:
                also = f" ({', '.join(map(str, verdict.alternatives))})" if verdict.alternatives else ""
                said += f", or others in the place of the last one{also}: {verdict.status.label}"
            return [work.done(found, Mended("front", said, tuple(range(len(rows))), tuple(front)))]
    lost = with_lost(work.inverted(rows[:0]), work.read(rows[:0], rows, 1)[:, 0].tolist())
    said = (
        f"no front of up to {most} tokens that was tried makes the first row fit: longer ones are too many to try; "
        "name the tokens before the first row (--prefix), or capture from the first token on"
    )
    return [work.done(lost, Mended("front", said, tuple(range(len(rows)))))]


def _bos(work: Work) -> list[int]:
    """What a model's config or tokenizer names as the beginning of a text, whether or not it is put there."""
    decoder = work.decoder
    bos = getattr(decoder.tokenizer, "bos_token_id", None)
    bos = decoder.model.config.get_text_config().bos_token_id if bos is None else bos
    return [bos] if isinstance(bos, int) and 0 <= bos < decoder.usable_ids else []
