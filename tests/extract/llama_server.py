"""A real llama.cpp server in a process of its own, serving the bundled model: `with serve(folder) as url:`.

Run as a script it *is* that server: it prints its address and ends with its standard input.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def missing() -> str | None:
    """Why there can be no server here, or None."""
    absent = [name for name in ("xllamacpp", "gguf") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} cannot be imported: pip install -e '.[test]'" if absent else None


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Convert the bundled model into `folder` and serve it on a free port; yields the base URL, `http://…/v1`."""
    spec = importlib.util.spec_from_file_location("bundled_to_gguf", ROOT / "tools" / "bundled_to_gguf.py")
    assert spec is not None
    assert spec.loader is not None
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    path = folder / "bundled.gguf"
    converter.write_gguf(path)
    command = [sys.executable, str(Path(__file__).resolve()), str(path)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address.startswith("http"):
            raise RuntimeError(f"llama.cpp's server did not start: {(folder / 'server.log').read_text()[-2000:]}")
        yield f"{address}/v1"
    finally:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()


def main(path: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    # as exact as it gets: fp32 keys and values, no fused attention
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
