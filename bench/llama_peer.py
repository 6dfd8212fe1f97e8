"""llama.cpp through `llama-cpp-python`, beside our engine. It brings a numpy of its own, so it runs in an environment
of its own, which is compiled in some minutes:

    CMAKE_ARGS=-DGGML_OPENMP=OFF pip install llama-cpp-python     # then --llama-cpp THAT/python

Run as a program there, this file answers one line of JSON with one line: from {"prompts", "answers"} to {"tokens"}.
llama.cpp itself writes the GGUF anew in fp32 first, so that both sides compute with the same numbers. Its `Llama` has
no batch of requests, nor has the server that comes with it: requests are answered one after another.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALL_F32 = 0
"""LLAMA_FTYPE_ALL_F32 of llama.h."""
CONTEXT = 1024


class LlamaCpp:
    """The peer in a process of its own, which ends with the block."""

    def __init__(self, python: Path, gguf: Path, folder: Path, threads: int) -> None:
        command = [str(python), __file__, str(gguf), str(folder / "fp32.gguf"), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._line()["version"]

    def run(self, prompts: Sequence[Sequence[int]], answers: Sequence[int]) -> list[list[int]]:
        """Greedy answers of these lengths."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": [list(p) for p in prompts], "answers": list(answers)}) + "\n")
        self._process.stdin.flush()
        return [list(tokens) for tokens in self._line()["tokens"]]

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp's process ended with {self._process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def answer_lines(gguf: str, in_fp32: str, threads: int) -> None:
    """What runs in the other environment."""
    import llama_cpp  # type: ignore[import-not-found]

    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize, wanted.nthread = ALL_F32, True, threads
    if llama_cpp.llama_model_quantize(gguf.encode(), in_fp32.encode(), ctypes.byref(wanted)):
        raise SystemExit(f"llama.cpp could not write {gguf} in fp32")
    model = llama_cpp.Llama(in_fp32, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens = []
        for prompt, length in zip(asked["prompts"], asked["answers"], strict=True):
            model.reset()
            said = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
            tokens.append(list(itertools.islice(said, length)))
        print(json.dumps({"tokens": tokens}), flush=True)


if __name__ == "__main__":
    answer_lines(sys.argv[1], sys.argv[2], int(sys.argv[3]))
