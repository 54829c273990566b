"""What goes between the host and the device, and how: the host keeps the books, the device what is wide.

Which texts are in the lanes, how far they are, what was tried there and what came of it are a few numbers a lane. A GPU
takes longer to launch a kernel on them than a CPU to work them out, and a decision that hangs on one of its numbers
waits for all that it has queued. So they stay on the host. Sent to the device are tokens and places, told back what
was measured there: once each for a call. On a CPU both are the same place, and nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOST = torch.device("cpu")


def sent(device: torch.device, *tables: Tensor) -> tuple[Tensor, ...]:
    """The same on the device, without waiting for it; those of one type in one copy."""
    if device.type == "cpu":
        return tables
    there = [table for table in tables if table.device.type == "cpu"]
    moved: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(table.dtype for table in there):
        alike = [table for table in there if table.dtype == dtype]
        flat = alike[0].flatten() if len(alike) == 1 else torch.cat([table.flatten() for table in alike])
        flat = flat.pin_memory() if device.type == "cuda" else flat  # from other memory it would be waited for
        parts = flat.to(device, non_blocking=True).split([table.numel() for table in alike])
        moved |= {id(table): part.view(table.shape) for table, part in zip(alike, parts, strict=True)}
    return tuple(moved.get(id(table), table) for table in tables)


def sent_one(device: torch.device, table: Tensor) -> Tensor:
    return sent(device, table)[0]


def send_into(there: Tensor, rows: Tensor) -> None:
    """Rows to where they are wanted, without waiting for it."""
    there.copy_(rows.pin_memory() if there.is_cuda and not rows.is_cuda else rows, non_blocking=True)


def told(*tables: Tensor) -> tuple[Tensor, ...]:
    """The same on the host. What is on a device comes in one copy, as bytes: it is waited for once."""
    there = sorted((table for table in tables if table.device.type != "cpu"), key=lambda table: -table.element_size())
    if not there:
        return tables
    parts = [table.contiguous().flatten().view(torch.uint8) for table in there]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    back = whole.cpu().split([part.numel() for part in parts])
    here = {id(table): part.view(table.dtype).view(table.shape) for table, part in zip(there, back, strict=True)}
    return tuple(here.get(id(table), table) for table in tables)


def told_one(table: Tensor) -> Tensor:
    return told(table)[0]


def picked(table: Tensor, *index: Tensor) -> Tensor:
    """`table[index]` of a table wherever it is, at places that the host knows."""
    return table[sent(table.device, *index)]
