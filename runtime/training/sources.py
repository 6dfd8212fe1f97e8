"""Where training data comes from: text, JSON lines or token ids, by path or any fsspec URL, packed or not."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
from tokenizers import Tokenizer

PYDOC = "pydoc"
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


class DataError(ValueError):
    """The training data cannot be used; the message names the file and says what to do."""


def kind_of(data: str) -> str:
    """The name's ending, that of what is packed if it is packed: ".txt", ".jsonl", ".npy"."""
    path = PurePosixPath(data)
    return PurePosixPath(path.stem).suffix if path.suffix in _PACKED else path.suffix


def is_tokenised(data: str) -> bool:
    """Whether it holds token ids."""
    return kind_of(data) == ".npy"


def read_text(data: str) -> str:
    """The text of "pydoc", a path or a URL. Raises `DataError`."""
    if data == PYDOC:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    raw = read_bytes(data)
    try:
        text = raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{data}: not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}): convert it, e.g. with iconv"
        ) from error
    if kind_of(data) in (".jsonl", ".ndjson"):
        text = "\n\n".join(_documents(data, text))
    if not text.strip():
        raise DataError(f"{data}: the file is empty: give a file with text")
    return text


def read_tokens(data: str, vocab_size: int) -> np.ndarray:
    """Token ids of a .npy file, a flat array of integers. Raises `DataError`."""
    try:
        tokens = np.load(io.BytesIO(read_bytes(data)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{data}: not a NumPy file: write it with numpy.save") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not len(tokens):
        raise DataError(f"{data}: {tokens.dtype} of shape {tokens.shape}: give a flat array of integers")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise DataError(
            f"{data}: token ids go from {tokens.min()} to {tokens.max()}, but model.vocab_size is {vocab_size}"
        )
    return tokens


def read_bytes(data: str) -> bytes:
    """What lies there, unpacked. Raises `DataError`."""
    try:
        with fsspec.open(data, "rb", compression="infer") as file:
            return file.read()
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{data}: cannot be read ({why}): give a path or URL that the nodes can read") from error
    except (ImportError, ValueError) as error:  # fsspec's words for a scheme that it does not know, or lacks
        raise DataError(f"{data}: cannot be read ({error})") from error


def _documents(data: str, lines: str) -> list[str]:
    found = []
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise DataError(f'{data}: line {number} is not an object with a "text": {line[:60]}')
        found.append(text)
    return found


def read_tokenizer(folder: str, vocab_size: int) -> str:
    """The tokenizer.json of a Hugging Face folder. Raises `DataError`."""
    path = Path(folder) / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        size = Tokenizer.from_str(text).get_vocab_size()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}): give the folder of a fast tokenizer, as save_pretrained writes"
        ) from error
    except Exception as error:  # tokenizers raises bare exceptions
        raise DataError(f"{path}: not a tokenizer: {error}") from error
    if size > vocab_size:
        raise DataError(f"{path}: {size} tokens, but model.vocab_size is {vocab_size}: raise it to {size}")
    return text


def keep_tokenizer_files(folder: str, output: Path) -> None:
    """Bring a tokenizer's own settings into a finished model's folder, and say there which token ends a text."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (Path(folder) / name).exists():
            shutil.copyfile(Path(folder) / name, output / name)
    settings = json.loads((output / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    tokenizer = Tokenizer.from_file(str(output / "tokenizer.json"))
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = tokenizer.token_to_id(end) if end else None
    (output / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
