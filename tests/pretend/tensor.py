"""Tensors that say they are on cuda:0, and are computed on the CPU.

PyTorch sees a CUDA tensor: its own Python, autograd, and every `device=` go the way they go on a GPU. Each op arrives
here below autograd, is held against what a GPU would do with it, and runs on what the tensors hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .stops import Stops, place, waits

DEVICE = torch.device("cuda", 0)
STOPS = Stops()
_INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
_FREE = ("view", "detach", "alias", "select", "slice", "expand", "transpose", "t", "permute", "unsqueeze", "squeeze")
_FREE += ("unbind", "split", "split_with_sizes", "as_strided", "diagonal", "_unsafe_view", "lift_fresh", "unfold")


class MixedDevicesError(RuntimeError):
    """What a GPU refuses: memory of the host, or a generator of its, in an op of the device."""


class Pretended(Tensor):
    """held: the CPU tensor that it is."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=DEVICE, **layout)

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    def __tensor_flatten__(self):  # with these two `Module.to` puts us in the place of a parameter
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts, _context, _size, _stride):
        return Pretended(parts["held"])

    def __repr__(self, *, tensor_contents=None):
        return f"Pretended({self.held!r})"

    def __deepcopy__(self, memo: dict[int, Any]):
        if id(self) not in memo:
            copied = Pretended(self.held.clone())
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter(self) else copied
        return memo[id(self)]

    def tolist(self):
        STOPS.note("tolist")
        return self.held.tolist()

    def numpy(self, *_args, **_options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def untyped_storage(self):
        return self.held.untyped_storage()  # to tell which tensors share one, as files of them must know

    def data_ptr(self):
        """Its identity: whether two tensors are one."""
        if place().startswith(("ops/", "kernels/")):
            raise RuntimeError(
                f"the address of a pretended tensor was asked for at {place()}: kernels are not pretended"
            )
        return self.held.data_ptr()


def is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


class Device(TorchDispatchMode):
    """Within it `device="cuda"` makes pretended tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    name = func._schema.name.partition("::")[2]  # type: ignore[attr-defined]
    asked = kwargs.get("device")
    to_device = asked is not None and torch.device(asked).type == "cuda"
    if not ours and not to_device:
        return _on_host(func, name, args, kwargs)
    host = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Pretended)]
    if ours and host:
        _check_meeting(name, func, args, host)
    _check_generator(name, leaves)
    kind = _copies(name, args, kwargs, bool(ours), to_device) or waits(name, args, kwargs)
    if kind is not None:
        STOPS.note(kind)
    STOPS.launches += name not in _FREE
    return _run(func, name, args, kwargs, ours)


def _on_host(func: Callable, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An op of the CPU alone. Without a GPU PyTorch cannot pin memory: what should be is marked."""
    if name == "is_pinned":
        return is_pinned(args[0])
    pinned = bool(kwargs.get("pin_memory")) or name == "_pin_memory"
    if not pinned:
        return func(*args, **kwargs)
    made = args[0].clone() if name == "_pin_memory" else func(*args, **{**kwargs, "pin_memory": False})
    made.is_pinned_here = True
    return made


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "is_pinned_here", False)


def _check_meeting(name: str, func: Callable, args: tuple, host: list[Tensor]) -> None:
    """The device meets the host in one op: it may in copies and as an index, and numbers may be operands."""
    if name == "copy_":
        return
    if name in _INDEXING:
        if not isinstance(args[0], Pretended):
            raise MixedDevicesError(f"{name} of a CPU tensor with indices on cuda:0, at {place()}")
        host = [t for t in args[2:3] if isinstance(t, Tensor) and not isinstance(t, Pretended)]  # indices may be there
    lists = any("List[Tensor]" in str(a.type) for a in func._schema.arguments)  # type: ignore[attr-defined]
    strangers = [t for t in host if t.dim() > 0 or (lists and name not in _INDEXING)]
    if strangers:
        shapes = ", ".join(str(list(t.shape)) for t in strangers)
        raise MixedDevicesError(f"{name} of tensors on cuda:0 and on the CPU ({shapes}), at {place()}")


def _check_generator(name: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and leaf.device.type == "cpu":
            raise MixedDevicesError(f"{name} on cuda:0 with a generator of the CPU, at {place()}")


def _copies(name: str, args: tuple, kwargs: dict[str, Any], ours: bool, to_device: bool) -> str | None:
    """The kind of stop that a copy between host and device is, None where it is none or does not wait."""
    if name == "_to_copy":
        queued = bool(kwargs.get("non_blocking"))
        if not ours and to_device:
            return None if queued and is_pinned(args[0]) else "from host"
        away = kwargs.get("device") is not None and not to_device
        return "to host" if ours and away and not queued else None  # into memory that PyTorch pins, if it need not wait
    if name == "copy_":
        into, source = isinstance(args[0], Pretended), isinstance(args[1], Pretended)
        if into == source:
            return None
        number = into and args[1].dim() == 0 and not is_pinned(args[1])
        queued = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        there = args[1] if into else args[0]
        if queued and is_pinned(there):
            return None
        return "from host" if into or number else "to host"
    if name in _INDEXING and isinstance(args[0], Pretended):
        if any(isinstance(i, Tensor) and not isinstance(i, Pretended) for i in args[1]):
            return "index from host"
        number = len(args) > 2 and not isinstance(args[2], Pretended)
        return "number at an index" if number and waits(name, args, kwargs) is None and not _one_mask(args[1]) else None
    return None


def _one_mask(indices: Any) -> bool:
    given = [i for i in indices if i is not None]
    return len(given) == 1 and given[0].dtype in (torch.bool, torch.uint8)


def _run(func: Callable, name: str, args: tuple, kwargs: dict[str, Any], ours: list[Pretended]) -> Any:
    away = kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "cuda"
    options = {k: v for k, v in kwargs.items() if k not in ("pin_memory", "non_blocking")}
    if options.get("device") is not None:
        options["device"] = torch.device("cpu")
    held_args, held_options = tree_map_only(Pretended, lambda t: t.held, (args, options))
    out = _computed(func, name, held_args, held_options)
    if torch.Tag.inplace_view in func.tags:  # type: ignore[attr-defined]
        _reshape(func, args, kwargs)
    assert all(t.shape == t.held.shape for t in ours), f"{name} changes a shape in place, which is not pretended"
    if STOPS.recorded is not None:
        STOPS.recorded.append((func, held_args, held_options, out))
    if away or (name == "copy_" and not isinstance(args[0], Pretended)):
        return out
    known = {id(t.held): t for t in ours}  # what an op returns of its operands is the operand itself
    return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else Pretended(t), out)


def _computed(func: Callable, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """On the CPU, also what only a GPU does: counts of whole numbers, products that are given in another precision."""
    if name == "mm" and func._overloadname == "dtype":  # type: ignore[attr-defined]
        return args[0].to(args[2]) @ args[1].to(args[2])
    if name == "histc" and not args[0].is_floating_point():
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _reshape(func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    """The shape that an op gives its operand in place: to the wrapper, as PyTorch's own subclasses do it."""
    before = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)
