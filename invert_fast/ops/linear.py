"""`linear`: rows times a matrix, as few of them as a pass over lanes or over a chunk of a text has.

A matrix that was packed once, csrc/product.cpp: a tenth to a half faster than PyTorch's at 16 to 128 rows, which spends
that time packing, and at fewer; in half as many bytes, and twice as fast for a few rows, where its numbers all are bf16
ones. One that is too large to be there twice, and lies as its columns do, as embeddings and heads do, is read so,
csrc/scores.cpp: there 2 to 32 rows take PyTorch's three times as long, or more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from . import native
from .native import _C, address, has_values
from .recording import define, is_recording
from .table import backend as backend_of
from .table import choose

FEW_ROWS = 64  # of a product with a matrix that is not packed: of more, a general product is as fast
MOST_BYTES = 1 << 30  # of packed weights: each is there a second time, and for gradients a third
_AT_ONCE = 1 << 22  # numbers that are looked at at once


def linear(
    x: Tensor, matrix: Tensor, bias: Tensor | None = None, packed: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """x `[..., K]` · matrix `[K, N]` + bias `[N]`, see `kernels.reference.linear`. packed: the matrix as `pack` wrote
    it, where it is used often; without it `table.T` of a contiguous `table [N, K]` is used as it lies. With a
    packed matrix it takes no gradient: see `PackedLinear`."""
    if x.shape[-1] != matrix.shape[0] or (bias is not None and bias.shape != matrix.shape[1:]):
        shape = None if bias is None else list(bias.shape)
        raise ValueError(
            f"linear of rows {list(x.shape)}, matrix {list(matrix.shape)} and bias {shape}: expected [..., K], [K, N] "
            "and [N]"
        )
    return backend_of("linear", backend, x.device)(x, matrix, bias, packed)


def fused(x: Tensor, matrix: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """PyTorch's own."""
    rows = x.reshape(-1, matrix.shape[0])
    out = torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)
    return out.view(*x.shape[:-1], matrix.shape[1])


def cpp(x: Tensor, matrix: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """csrc/product.cpp, csrc/scores.cpp for fp32; PyTorch's own for other types. So too, for what is not packed, where
    there are many rows or a gradient is taken."""
    if not x.dtype == matrix.dtype == torch.float32:
        return fused(x, matrix, bias)
    (K, N), as_columns = matrix.shape, packed is None and matrix.stride(0) == 1
    plain = packed is not None or (all(map(has_values, (x, matrix))) and not _takes_gradient(x, bias))
    if not plain or (as_columns and x.numel() > FEW_ROWS * K):
        return fused(x, matrix, bias)
    bias = None if bias is None else bias.contiguous()
    rows = x.reshape(-1, K)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out, added = x.new_empty(*x.shape[:-1], N), 0 if bias is None else address(bias)
    sizes, threads = (len(rows), K, N, rows.stride(0)), torch.get_num_threads()
    if as_columns:
        _C.scores(address(rows), address(matrix.T), added, address(out), *sizes, matrix.stride(1), N, threads)
    else:
        packed = pack(matrix) if packed is None else packed
        halved = packed.dtype == torch.bfloat16
        _C.product(address(rows), address(packed, packed.dtype), added, address(out), *sizes, N, halved, threads)
    return out


def _takes_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def packs(matrix: Tensor) -> bool:
    """Whether a packed form of a matrix would be used."""
    on_cpu = matrix.device.type == "cpu" and matrix.dtype == torch.float32 and has_values(matrix)
    return on_cpu and choose("linear", "cpu") == "cpp"


def pack(matrix: Tensor) -> Tensor:
    """A matrix `[K, N]` in the form of csrc/product.cpp."""
    packed = torch.empty(_C.packed_size(*matrix.shape), dtype=torch.float32)
    _C.pack_matrix(address(matrix), *matrix.stride(), *matrix.shape, address(packed))
    return packed


def pack_halved(matrix: Tensor) -> Tensor | None:
    """The same in half as many bytes, which for few rows takes half the time; None where a number of it is none of
    bf16. Most models are published in bf16: read in fp32, all their numbers are. Products come to the same."""
    packed = torch.empty(_C.packed_size(*matrix.shape), dtype=torch.bfloat16)
    place = address(packed, torch.bfloat16)
    return packed if _C.pack_matrix(address(matrix), *matrix.stride(), *matrix.shape, place, True) else None


def is_halved(matrix: Tensor) -> bool:
    """Whether `pack_halved` would do: all numbers of a matrix `[N, K]` fp32 are bf16 ones."""
    parts = matrix.view(torch.int32).split(max(1, _AT_ONCE // max(1, matrix.shape[1])))
    return not any(bool((part & 0xFFFF).any()) for part in parts)


def pack_parts(parts: Iterable[Tensor], width: int, columns: int) -> Tensor:
    """As `pack` of a matrix `[width, columns]` that comes in parts, each but the last of a multiple of 16 columns."""
    packed, start = torch.empty(_C.packed_size(width, columns), dtype=torch.float32), 0
    for part in parts:
        into = packed[_C.packed_size(width, start) :]
        _C.pack_matrix(address(part), *part.stride(), *part.shape, address(into))
        start += part.shape[1]
    return packed


class _Packed(nn.Module):
    """What `PackedLinear` and `PackedConv1D` share; of no state of its own, so that a module can become one."""

    weight: Tensor
    bias: Tensor | None
    weight_is_transposed = False  # `[N, K]`

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        if is_recording():  # of any number of rows
            return _Product.apply(x, self)  # type: ignore[return-value]
        if not has_values(x) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # type: ignore[return-value]
        packed, matrix = self.packed(False)
        return linear(x, matrix, self.bias, packed)

    def packed(self, transposed: bool) -> tuple[Tensor, Tensor]:
        """`[K, N]`, or its transpose, in the form of csrc/product.cpp, made on the first use; and as a view."""
        packs = self.__dict__.setdefault("_packs", {})
        if transposed not in packs:
            weight = self.weight.detach()
            matrix = weight.t() if transposed != self.weight_is_transposed else weight
            halved = pack_halved(matrix)
            packs[transposed] = pack(matrix) if halved is None else halved, matrix
        return packs[transposed]

    def packed_bytes(self) -> int:
        """Of `packed` in one direction."""
        weight = self.weight.detach()
        if "_halved" not in self.__dict__:
            self.__dict__["_halved"] = is_halved(weight)
        return weight.nbytes // 2 if self.__dict__["_halved"] else weight.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_packs", "_halved")}


class PackedLinear(_Packed, nn.Linear):
    weight_is_transposed = True


class PackedConv1D(_Packed, Conv1D):
    pass


_PACKED = {nn.Linear: PackedLinear, Conv1D: PackedConv1D}


def pack_linears(body: nn.Module) -> None:
    """Make the linear layers of a body, copies whose weights nobody changes, packed ones, where that is faster."""
    if not native.has("linear"):
        return
    found = [module for module in body.modules() if type(module) in _PACKED]
    size = sum(weight.nbytes for module in found for weight in module.parameters())
    weights = [weight.detach() for module in found for name, weight in module.named_parameters() if name == "weight"]
    if MOST_BYTES < size <= 2 * MOST_BYTES and all(packs(weight) and is_halved(weight) for weight in weights):
        size //= 2
    if size <= MOST_BYTES:
        for module in found:
            module.__class__ = _PACKED[type(module)]


def packed_bytes(body: nn.Module) -> int:
    """What the packed weights of a body take, once all are made, those for gradients not counted."""
    found = [module for module in body.modules() if isinstance(module, _Packed)]
    return sum(m.packed_bytes() for m in found if m.weight.dtype == torch.float32 and m.weight.device.type == "cpu")


def share_packs(body: nn.Module, other: nn.Module) -> None:
    """Let two bodies with the same weights keep the packed ones once."""
    theirs = dict(other.named_modules())
    for name, module in body.named_modules():
        twin = theirs.get(name)
        if isinstance(module, _Packed) and isinstance(twin, _Packed) and module.weight is twin.weight:
            shared = twin.__dict__.setdefault("_packs", {})
            module.__dict__["_packs"] = shared


class _Product(torch.autograd.Function):
    """By way of the operator below while a pass is recorded, else directly. Weights have no gradient here."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        bias = None if module.bias is None else module.bias.detach()
        packed, matrix = module.packed(False)
        return (_product if is_recording() else _recorded)(x, packed, matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        packed, matrix = ctx.module.packed(True)
        return (_product if is_recording() else _recorded)(grad, packed, matrix, None), None


def _recorded(x: Tensor, packed: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return cpp(x, matrix, bias, packed)


_product = define("product(Tensor x, Tensor packed, Tensor matrix, Tensor? bias) -> Tensor", _recorded)
