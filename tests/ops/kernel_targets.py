"""Compiles every Triton kernel for real GPUs, without one, and prints what each needs as JSON lines.

Run by test_kernel_targets.py in a process of its own: in the tests' one, `triton.jit` makes interpreted functions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from invert_fast.kernels import adam_triton, attention_triton, nearest_triton, residuals_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def usage(kernel, signature: dict, constants: dict, capability: int, **options) -> dict[str, int]:
    """Registers, stack, local (spilled) and shared bytes of one compiled kernel.

    Pointers and strides are declared divisible by 16, as the launcher finds them at run time.
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if kind.startswith("*") or "stride" in name
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    registers, stack, shared, local = map(int, found.groups())
    return {"registers": registers, "stack": stack, "local": local, "shared": shared + compiled.metadata.shared}


# Queries, metric, the table's type, and whether all ranks are kept: one case for each shape of the kernel's registers.
NEAREST = [
    (1, "l1", "fp32", False),
    (1, "cosine", "bf16", False),
    (4, "l1", "bf16", True),
    (64, "l1", "fp32", False),
    (64, "l1", "bf16", True),
    (64, "cosine", "fp32", False),
]


# Rows of a program, size of a head, the type of keys and values, and whether the queries follow one another.
ATTENTION = [
    (1, 64, "fp32", False),
    (1, 128, "bf16", False),
    (4, 128, "fp32", False),
    (64, 64, "fp32", False),
    (64, 64, "bf16", True),
    (64, 128, "fp32", True),
    (64, 128, "bf16", True),
    (1, 256, "fp32", False),
    (64, 256, "fp32", True),
]


SHORT = {"attend": "out", "query_gradients": "dq", "key_gradients": "dk dv"}


def attention_cases():
    """Forward and backward, with a prefix behind slots, and the worst of windows and caps."""
    kernels = [attention_triton.attend, attention_triton.query_gradients, attention_triton.key_gradients]
    for rows, head, dtype, causal in ATTENTION:
        tiles = attention_triton.tiles(rows, head)
        constants = {"HKV": 8, "GROUPS": 2, "HEAD": head, "BD": head, "CAUSAL": causal, "PREFIX": True, "SLOTS": True}
        constants |= {"WINDOW": True, "SOFTCAP": True}
        for kernel in kernels if causal else kernels[:2]:
            sizes = attention_triton.key_tiles(head) if kernel is kernels[2] else tiles
            known = {
                "out": "*fp32",
                "sums": "*fp32",
                "lengths": "*i64",
                "slots": "*i64",
                "scale": "fp32",
                "softcap": "fp32",
            }
            own = [name for name in kernel.arg_names if not name.isupper() or name == "K"]
            signature = {
                name: known.get(name, "i32" if "stride" in name or name in ("window", "K") else f"*{dtype}")
                for name in own
            }
            if not causal:  # one part for each query head
                signature |= {name: "*fp32" for name in ("dk", "dv") if name in own}
            values = {name: value for name, value in (constants | sizes).items() if name in kernel.arg_names}
            name = f"attention {SHORT[kernel.__name__]}, {'draft' if causal else 'fan-out'} of {rows}, {head} {dtype}"
            yield name, kernel, signature, values, {option: sizes[option] for option in ("num_warps", "num_stages")}


def cases():
    """Name, kernel, signature, constants and options of what a launch can ask for."""
    for batch, metric, dtype, keep_all in NEAREST:
        tiles = nearest_triton.tiles(batch)
        warps = tiles.pop("num_warps")
        signature = {"queries": "*fp32", "table": f"*{dtype}", "banned": "*u8", "ranks": "*i64", "least": "*i64"}
        signature |= dict.fromkeys(["B", "V", "query_stride", "table_stride", "banned_stride"], "i32")
        constants = {"D": 768, "METRIC": nearest_triton.METRICS[metric], "HAS_BANNED": True, "KEEP_ALL": keep_all}
        name = f"nearest {metric} {dtype}, {'many' if keep_all else 'one'} of {batch}"
        yield name, nearest_triton.rank_rows, signature, constants | tiles, {"num_warps": warps}
    signature = {"ranks": "*i64", "distances": "*fp32", "ids": "*i64", "size": "i32"}
    yield "unpack ranks", nearest_triton.unpack_ranks, signature, {"BLOCK": 256}, {}
    for dtype in ("fp32", "bf16"):
        signature = {"predictions": f"*{dtype}", "targets": f"*{dtype}", "out": "*fp32", "C": "i32"}
        strides = dict.fromkeys(["prediction_stride_b", "prediction_stride_c", "target_stride_b"], "i32")
        constants = {"D": 768, "BC": 8, "BD": 256}
        yield f"residuals {dtype}", residuals_triton.residual_rows, signature | strides, constants, {}
    yield from attention_cases()
    tables = ["proxy", "grad", "exp_avg", "exp_avg_sq"]
    rates = ["lr", "total_steps", "clip", "weight_decay", "eps"]
    betas = ["beta1", "beta2", "rest1", "rest2", "log_beta1", "log_beta2"]
    signature = (
        dict.fromkeys(tables, "*fp32")
        | {"steps": "*i64", "active": "*u8"}
        | {f"{table}_stride": "i32" for table in tables}
        | dict.fromkeys([*rates, *betas], "fp32")
    )
    yield "adam step", adam_triton.step_lane, signature, {"CLIP": True, "D": 768, "BD": 1024}, {}


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for name, kernel, signature, constants, options in cases():
            needs = usage(kernel, signature, constants, capability, **{"num_warps": 4, "num_stages": 3} | options)
            print(json.dumps({"kernel": name, "target": f"sm_{capability}", **needs}), flush=True)
