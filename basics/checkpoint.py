"""Files of tensors: written so that a kill or a full disk never costs the old file, read without running code."""

from __future__ import annotations

import hashlib
import mmap
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import torch

from basics.errors import UserError
from basics.files import replacing
from basics.optional_packages import need

POINTER = b"version https://git-lfs"
# How a tensor of an .onnx says in which file it lies: protobuf's pair of the strings "location" and, behind its length
# (which it writes in two bytes at most, seven bits each), the file's name.
LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]?[\x00-\x7f])")


def save_atomic(obj: object, path: str | Path) -> None:
    """``torch.save`` by way of `basics.files.replacing`: ``path`` holds the old content or the whole new one.

    Raises:
        UserError: the disk is full or the place cannot be written; the old file is untouched.
    """
    # An open file, not a path: given a path, torch writes by itself and hides the system's reason.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(obj, file)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes, in hexadecimal digits; of an .onnx, also of the files that hold its weights.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for part in [path, *(external_data(path) if path.suffix.lower() == ".onnx" else [])]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def refuse_pointer(path: Path) -> None:
    """A `UserError` for a file that Git LFS has not fetched: it is there by its name, and holds but a reference."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(f"{path}: only Git LFS's pointer to the file, not the file: fetch it by `git lfs pull`")


def external_data(path: Path) -> list[Path]:
    """The files beside an .onnx that it names as those of its weights, as exporters lay out large networks."""
    if not path.stat().st_size:
        return []
    names = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in LOCATION.finditer(content):
            length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[1]))
            names.add(content[found.end() : found.end() + length].decode(errors="ignore"))
    return [path.parent / name for name in sorted(names) if "\0" not in name and (path.parent / name).is_file()]


def load_file(path: str | Path) -> dict:
    """The dict that ``torch.save`` wrote to ``path``, on the CPU; nothing in the file is ever executed.

    Of a ``.safetensors`` file, its tensors by name.

    Raises:
        UserError: no such file, not a torch file, truncated, no dict, or more than tensors and plain
            values in it (such a file could run code, and is refused); or it would unpack to more than
            its own size; or the package safetensors is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file of weights' if path.is_dir() else 'no such file'}")
    try:
        refuse_pointer(path)
        if path.suffix.lower() == ".safetensors":
            return _load_safetensors(path)
        _refuse_programs(path)
        _refuse_inflation(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd files; what counts is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        # A text file fails as an unknown pickle instruction, too; only a real one deserves the warning.
        if "GLOBAL" in str(error) and _is_torch_file(path):
            kind = re.search(r"GLOBAL ([\w.]+)", str(error))
            tensors = ".state_dict()" if _is_one_object(path) else '["state_dict"]'
            raise UserError(
                f"{path}: holds more than tensors and plain values ({kind[1] if kind else 'objects'}), and reading it "
                "could run code: refused; where you trust it, save its tensors alone and pass that: "
                f'torch.save(torch.load(FILE, weights_only=False){tensors}, "weights.pth")'
            ) from error
        raise UserError(f"{path}: not a torch file, or a damaged one") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise UserError(f"{path}: not a torch file, or a damaged one ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


def _load_safetensors(path: Path) -> dict:
    safetensors = need("safetensors.torch", "safetensors", str(path))
    try:
        return dict(safetensors.load_file(path))
    except Exception as error:  # a class of its own for what is malformed, the system's for the rest
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({type(error).__name__})") from error


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is what files of weights hold: dense real numbers on the CPU, each with a place of its own."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _refuse_programs(path: Path) -> None:
    """TorchScript writes archives, too, and calls them .pt as well."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise UserError(
                f"{path}: a program of TorchScript, not weights: as a teacher, let a function of yours return "
                "torch.jit.load(FILE) (--teacher my_net.py:build); its weights are torch.jit.load(FILE).state_dict()"
            )


def _is_one_object(path: Path) -> bool:
    """Whether what was saved is an object of a class, a whole network for one, and not a dict that holds some."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        content = next((archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")), b"")
    names = (name for opcode, name, _ in pickletools.genops(content) if opcode.name not in ("PROTO", "BINPUT", "PUT"))
    first = next(names, None)
    return isinstance(first, str) and not first.startswith("collections ")


def _refuse_inflation(path: Path) -> None:
    """``torch.save`` compresses nothing; in a compressed file a few kB can stand for all of the memory."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise UserError(f"{path}: compressed, which torch.save never does: refused; unpack it and save it anew")


def _is_torch_file(path: Path) -> bool:
    """Whether ``path`` starts like what ``torch.save`` writes: a zip archive, or (old) a pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
