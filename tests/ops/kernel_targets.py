"""What every Triton kernel needs on real GPUs, found out without one, as JSON lines.

    python tests/ops/kernel_targets.py [--again] [--write] 80 90 100

Compiling all takes minutes, so what was found is written down in kernel_targets.json, each row under the hash of all
that it follows from: the kernel's source and that of what it calls, its arguments, options and target, and Triton's
version. A row that is not there is compiled; so are `SAMPLE` in any case, which must come out as written. --again
compiles all, --write writes down what was found.

Run by test_kernel_targets.py in a process of its own: in the tests' one, `triton.jit` makes interpreted functions.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from invert_fast.kernels import adam_triton, attention_triton, best_two_triton, nearest_triton, residuals_triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TABLE = Path(__file__).with_suffix(".json")
SAMPLE = ("unpack ranks", "residuals fp32")
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


# Queries, metric and the table's type: one case for each shape of the kernel's registers; and the width of the table,
# of GPT-2 small, Llama-3-8B and Gemma-3-27B.
NEAREST = [
    (1, "l1", "fp32", 768),
    (1, "cosine", "bf16", 768),
    (4, "l1", "bf16", 768),
    (64, "l1", "fp32", 768),
    (64, "l1", "bf16", 4096),
    (64, "cosine", "fp32", 768),
    (64, "l2", "fp32", 5376),
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
    for batch, metric, dtype, width in NEAREST:
        tiles = nearest_triton.tiles(batch)
        warps = tiles.pop("num_warps")
        signature = {"queries": "*fp32", "table": f"*{dtype}", "banned": "*u8", "least": "*i64"}
        signature |= dict.fromkeys(["B", "V", "query_stride", "table_stride", "banned_stride"], "i32")
        constants = {"D": width, "METRIC": nearest_triton.METRICS[metric], "HAS_BANNED": True}
        name = f"nearest {metric} {dtype} {width}"
        yield f"{name}, {batch}", nearest_triton.rank_rows, signature, constants | tiles, {"num_warps": warps}
        if batch > 1:
            tiles = {"BV": tiles["BV"], "BD": nearest_triton.CHOSEN_COLUMNS}
            signature = (signature | {"chosen": "*i64", "ranks": "*i64", "chosen_stride": "i32"}).copy()
            del signature["least"]
            yield (
                f"{name}, chosen of {batch}",
                nearest_triton.rank_chosen,
                signature,
                constants | tiles,
                {"num_warps": 4},
            )
    for rows, width in ((8, 768), (64, 640), (512, 4096), (512, 5376)):
        tiles = best_two_triton.tiles(rows)
        options = {option: tiles.pop(option) for option in ("num_warps", "num_stages")}
        signature = {"x": "*fp16", "factor": "*fp32", "table": "*fp16", "bias": "*fp32", "ranks": "*i64"}
        signature |= dict.fromkeys(["n", "V", "x_stride", "table_stride"], "i32")
        yield (
            f"best two of {rows}, {width}",
            best_two_triton.rank_groups,
            signature,
            {"K": width, "TILES": 4} | tiles,
            options,
        )
        signature = {"x": "*fp32", "matrix": "*fp32", "bias": "*fp32", "ranks": "*i64", "ids": "*i64", "leads": "*fp32"}
        signature |= dict.fromkeys(["V", "x_stride", "matrix_stride"], "i32")
        sizes = {"K": width, "C": best_two_triton.CANDIDATES, "BK": best_two_triton.columns(width)}
        yield f"best two of candidates, {width}", best_two_triton.best_of_row, signature, sizes, {}
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


def key(kernel, *more) -> str:
    """Equal only for what is compiled to the same: of the source, all that the kernel's file has and calls."""
    known = vars(sys.modules[kernel.fn.__module__])
    source = {
        name: getattr(value, "src", value)
        for name, value in sorted(known.items())
        if isinstance(value, (triton.JITFunction, triton.language.constexpr))
    }
    return hashlib.sha256(repr((kernel.__name__, source, triton.__version__, *more)).encode()).hexdigest()[:16]


def main(capabilities: list[int], again: bool, write: bool) -> None:
    written = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    found = {}
    for capability in capabilities:
        for name, kernel, signature, constants, options in cases():
            options = {"num_warps": 4, "num_stages": 3} | options
            at = key(kernel, signature, constants, options, capability)
            row = {"kernel": name, "target": f"sm_{capability}"}
            if again or at not in written or name in SAMPLE:
                row |= usage(kernel, signature, constants, capability, **options)
            else:
                row = written[at]
            print(json.dumps(row | {"key": at, "written": written.get(at)}), flush=True)
            found[at] = row
    if write:
        rows = ",\n".join(f"{json.dumps(at)}: {json.dumps(row)}" for at, row in found.items())
        TABLE.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    flags = {"--again", "--write"}
    main([int(word) for word in sys.argv[1:] if word not in flags], "--again" in sys.argv, "--write" in sys.argv)
