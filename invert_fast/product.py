"""Linear layers with their weights packed once, csrc/product.cpp: on AVX2 a fifth to a half faster than PyTorch's at 16
to 128 rows, as a pass over lanes or over a chunk of a text has: a general product spends much of that time packing.
PyTorch's own elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from .native import _C
from .recording import define, is_recording

_FEWEST_ROWS = 4  # for fewer, memory is what bounds it
MOST_BYTES = 1 << 30  # of weights: packed, each is there a second time, and for gradients a third


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
        # A stand-in, as of FakeTensorMode, has no values.
        if x.numel() < _FEWEST_ROWS * x.shape[-1] or type(x) is not Tensor or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self)  # type: ignore[return-value]
        return product(x, *self.packed(False), self.bias)

    def packed(self, transposed: bool) -> tuple[Tensor, Tensor]:
        """`[K, N]`, or its transpose, in the form of csrc/product.cpp, made on the first use; and as a view."""
        packs = self.__dict__.setdefault("_packs", {})
        if transposed not in packs:
            weight = self.weight.detach()
            matrix = weight.t() if transposed != self.weight_is_transposed else weight
            packs[transposed] = pack(matrix), matrix
        return packs[transposed]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packs"}


class PackedLinear(_Packed, nn.Linear):
    weight_is_transposed = True


class PackedConv1D(_Packed, Conv1D):
    pass


_PACKED = {nn.Linear: PackedLinear, Conv1D: PackedConv1D}


def pack_linears(body: nn.Module) -> None:
    """Make the linear layers of a body, copies whose weights nobody changes, packed ones, where that is faster."""
    if _C is None or not _C.tiles_are_widest():
        return
    found = [module for module in body.modules() if type(module) in _PACKED]
    if sum(weight.nbytes for module in found for weight in module.parameters()) <= MOST_BYTES:
        for module in found:
            module.__class__ = _PACKED[type(module)]


def pack(matrix: Tensor) -> Tensor:
    """A matrix `[K, N]` in the form of csrc/product.cpp."""
    packed = torch.empty(_C.packed_size(*matrix.shape))
    _C.pack_matrix(matrix.data_ptr(), *matrix.stride(), *matrix.shape, packed.data_ptr())
    return packed


def product(x: Tensor, packed: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x `[..., K]` · matrix `[K, N]` + bias `[N]`."""
    K, N = matrix.shape
    rows = x.reshape(-1, K)
    if len(rows) < _FEWEST_ROWS:
        few = torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix)
        return few.view(*x.shape[:-1], N)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = x.new_empty(*x.shape[:-1], N)
    _C.product(
        *(rows.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr()),
        *(len(rows), K, N, rows.stride(0), N, torch.get_num_threads()),
    )
    return out


class _Product(torch.autograd.Function):
    """By way of the operator below while a pass is recorded, else directly. Weights have no gradient here."""

    @staticmethod
    def forward(ctx, x, linear):
        ctx.linear = linear
        bias = None if linear.bias is None else linear.bias.detach()
        packed, matrix = linear.packed(False)
        return (_product if is_recording() else product)(x, packed, matrix, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        packed, matrix = ctx.linear.packed(True)
        return (_product if is_recording() else product)(grad, packed, matrix, None), None


_product = define("product(Tensor x, Tensor packed, Tensor matrix, Tensor? bias) -> Tensor", product)
