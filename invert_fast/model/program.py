"""A pass over lanes as a straight-line program: the operations of the twin, recorded once, replayed without modules.

At few lanes a pass is bound by Python: module calls, hooks and the bookkeeping of autograd take two thirds of an
optimisation step. Recorded (PyTorch's `make_fx`, no code per architecture), forward and backward are one flat list of
kernel calls. The recording is made at two primes as batch sizes, which then stand for any other; it is believed only
after it has reproduced the twin at other sizes, and dropped, for the twin itself, where anything is in doubt.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.fx.node import map_arg

from ..calls.interrupts import raise_interrupt
from ..ops.recording import REPLAYED, recording

log = logging.getLogger("invert_fast")

_B, _N = 13, 11  # sizes while recording; no width of a model is divisible by both
_CHECKED = ((1, 1), (3, 2), (5, 1), (1, 40))  # lanes, tokens a lane
_OFF = 1e-4  # relative; the same kernels on the same numbers, so it is rounding of another batch shape at most
_VIEWS = ("t", "transpose", "view", "unsqueeze", "expand", "detach", "slice", "select")
_MET = {"view": "view", "transpose": "transpose", "t": "t", "unsqueeze": "unsqueeze", "squeeze": "squeeze"}
_PLAIN = {"add": operator.add, "mul": operator.mul, "sub": operator.sub}

# embeds [B, N, D_e], positions [B, N], for a gradient the target [B, D], and of the prefix, if there is one,
# lengths [B], slots [B], the keys of every layer and the values of every layer.
Pass = Callable[..., tuple[Tensor, ...]]


def record(
    run: Pass, example: Callable[[int, int], Sequence[Tensor]], tokens: Sequence[int] | None = None
) -> Pass | None:
    """The program of `run`, or None when it cannot be recorded faithfully.

    example: arguments of a call for `B` lanes of `N` tokens; tokens: the N there can be (default any).
    """
    many = _N if tokens is None else tokens[0]
    try:
        run(*example(_B, many))  # what is made on first use, as packed weights, must not be made by the recording
        with recording():
            module = make_fx(run)(*example(_B, many))
        found = _program(module, many)
        for lanes, each in _CHECKED:
            arguments = example(lanes, each if tokens is None else tokens[0])
            for ours, theirs in zip(found(*arguments), run(*arguments), strict=True):
                if ours.shape != theirs.shape or not _close(ours, theirs):
                    raise ValueError(f"the recording is off at {lanes} lanes of {each}")
    except Exception as error:  # whatever a family does in its forward pass: it runs as before, only more slowly
        raise_interrupt(error)
        log.debug("a pass was not recorded: %s: %s", type(error).__name__, error)
        return None
    return found


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= _OFF * theirs.abs().max().clamp_min(1e-30)) if ours.numel() else True


def _program(module: GraphModule, many: int) -> Pass:
    graph = module.graph
    if any(
        node.target in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default) for node in graph.nodes
    ):
        raise ValueError("the pass looks at values of tensors")  # what it then does may not hold for others
    first = next(iter(graph.nodes))
    with graph.inserting_after(_last_input(graph)):
        lanes = graph.call_function(torch.Tensor.size, (first, 0))
    with graph.inserting_after(lanes):
        each = graph.call_function(torch.Tensor.size, (first, 1))
    with graph.inserting_after(each):
        rows = graph.call_function(operator.mul, (lanes, each))
    sizes = {_B: lanes, _B * many: rows, **({many: each} if many > 1 else {})}
    for node in list(graph.nodes):
        if node.op != "call_function" or node in (lanes, each, rows):
            continue
        if node.target in REPLAYED:
            node.target = REPLAYED[node.target]
            continue
        node.args = _general(node.args, sizes, node)
        _simplify(graph, node)
    graph.eliminate_dead_code()
    constants = _bind_constants(module, graph)
    graph.set_codegen(CodeGen())
    graph.lint()
    made = GraphModule(torch.nn.Module(), graph)
    forward = type(made).forward

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return forward(made, *constants, *arguments)

    return call


def _bind_constants(module: GraphModule, graph: Graph) -> list[Tensor]:
    """Turn weights, and views of weights, into leading arguments; returns them in order."""
    values: dict[Node, Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(module, node.target).detach()
        elif node.op in ("call_method", "call_function") and node.all_input_nodes:
            name = node.target if node.op == "call_method" else getattr(node.target, "_opname", "")
            if name in _VIEWS and all(n in values for n in node.all_input_nodes):
                call = getattr(torch.Tensor, name) if node.op == "call_method" else node.target
                values[node] = call(*map_arg(node.args, values.__getitem__))
    first, constants = next(iter(graph.nodes)), []
    for number, (node, value) in enumerate(values.items()):
        if all(user in values for user in node.users):
            continue  # only a step on the way to another constant
        with graph.inserting_before(first):
            given = graph.placeholder(f"constant_{number}")
        node.replace_all_uses_with(given, lambda user: user not in values)
        constants.append(value)
    for node in reversed(values):
        if not node.users:
            graph.erase_node(node)
    return constants


def _last_input(graph: Graph) -> Node:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def _general(arguments: Any, sizes: dict[int, Node], node: Node) -> Any:
    """The arguments with recorded sizes replaced by those of the call, in lists of sizes alone."""
    changed = []
    for value in arguments:
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, Node)) for v in value):
            changed.append([sizes.get(v, v) if isinstance(v, int) else v for v in value])
        elif isinstance(value, int) and value in sizes:
            raise ValueError(f"{node.target} takes {value} as a number")
        else:
            changed.append(value)
    return tuple(changed)


def _simplify(graph: Graph, node: Node) -> None:
    """Say in a cheaper way what a node does."""
    target = node.target
    name = getattr(target, "_opname", "")
    if target is torch.ops.aten.detach.default:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        graph.erase_node(node)
    elif name in _MET and not node.kwargs:
        node.op, node.target = "call_method", _MET[name]
    elif name in _PLAIN and not node.kwargs and len(node.args) == 2:
        node.target = _PLAIN[name]
    elif name in ("addmm", "mm") and not node.kwargs:
        node.target = getattr(torch, name)
