"""A folder with one page that runs the network in a browser, without a server or a network.

    index.html     what `deploy/web/index.html` holds
    student.js     the network as ONNX (normalised images in, logits out) and its card
    runtime.js     ONNX Runtime's WebAssembly, of the npm package onnxruntime-web
    ort.min.js     ONNX Runtime's JavaScript, of the same

A page opened from a disk may not fetch other files, but may have scripts: so all that it needs is a script.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.errors import UserError
from deploy.exporting import ExportOptions
from deploy.model_card import ModelCard
from deploy.onnx_format import OnnxModel, save_onnx

PAGE, STUDENT, RUNTIME, LIBRARY = "index.html", "student.js", "runtime.js", "ort.min.js"
FILES = (PAGE, STUDENT, RUNTIME, LIBRARY)
PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# In the package's dist/: the library, and the two files that it would fetch.
PARTS = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BEFORE, AFTER = "const STUDENT = ", ";\n"


def save_web(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Fill the folder ``path``.

    Raises:
        UserError: the runtime's files cannot be had, or there is no ONNX file of the network.
    """
    library, glue, binary = web_runtime(options.web_runtime)
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        onnx_file = Path(folder) / "student.onnx"
        save_onnx(program, card, onnx_file, options)
        network = onnx_file.read_bytes()
    page = Path(__file__).with_name("web") / PAGE
    shutil.copyfile(page, path / PAGE)
    (path / LIBRARY).write_bytes(library)
    runtime = {"glue": _text(glue), "binary": _text(binary)}
    (path / RUNTIME).write_text(f"const RUNTIME = {json.dumps(runtime)};\n", encoding="ascii")
    student = {"card": card.to_metadata(), "size": options.size, "onnx": _text(network)}
    (path / STUDENT).write_text(f"{BEFORE}{json.dumps(student)}{AFTER}", encoding="ascii")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def load_web(path: Path) -> OnnxModel:
    """The network in a page's folder, run by ONNX Runtime; a browser's runs the same graph.

    Raises:
        UserError: the folder's student.js is missing or damaged.
    """
    try:
        text = (path / STUDENT).read_text(encoding="ascii")
        content = base64.b64decode(json.loads(text.removeprefix(BEFORE).removesuffix(AFTER))["onnx"], validate=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path / STUDENT}: missing or damaged; export the page again") from error
    with tempfile.TemporaryDirectory(prefix="web-") as folder:
        network = Path(folder) / "student.onnx"
        network.write_bytes(content)
        return OnnxModel(network, torch.device("cpu"))


def web_runtime(source: Path | None) -> tuple[bytes, ...]:
    """The contents of `PARTS`.

    Args:
        source: the package as npm packs it (.tgz), its unpacked folder or the dist/ in it; None asks npm for it.

    Raises:
        UserError: npm is not installed or cannot fetch the package, or ``source`` lacks a part.
    """
    if source is None:
        with tempfile.TemporaryDirectory(prefix="npm-") as folder:
            return web_runtime(_fetch(Path(folder)))
    if not source.exists():
        raise UserError(f"--web-runtime {source}: no such file or folder")
    if source.is_dir():
        places = (source, source / "dist", source / "package" / "dist", source / "node_modules" / PACKAGE / "dist")
        place = next((place for place in places if (place / PARTS[0]).is_file()), source)
        missing = [part for part in PARTS if not (place / part).is_file()]
        if missing:
            raise UserError(f"--web-runtime {source}: {missing[0]} is not there; give the package {PACKAGE} {VERSION}")
        return tuple((place / part).read_bytes() for part in PARTS)
    try:
        with tarfile.open(source) as archive:
            files = [archive.extractfile(f"package/dist/{part}") for part in PARTS]
            if None in files:
                raise KeyError(f"{PARTS[files.index(None)]} is no file")
            return tuple(file.read() for file in files if file is not None)
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise UserError(f"--web-runtime {source}: not the package {PACKAGE} as npm packs it ({error})") from error


def _fetch(folder: Path) -> Path:
    """The package, fetched into ``folder`` by npm."""
    npm = shutil.which("npm")
    by_hand = f"or fetch the package {PACKAGE} {VERSION} elsewhere and name it with --web-runtime"
    if npm is None:
        raise UserError(
            f"the page needs {PACKAGE}, which npm fetches; npm is not installed: install Node.js, {by_hand}"
        )
    done = subprocess.run(
        [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent"], cwd=folder, capture_output=True, text=True, check=False
    )
    found = next(folder.glob("*.tgz"), None)
    if done.returncode or found is None:
        reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"npm cannot fetch {PACKAGE}@{VERSION} ({reason[-1][:150]}): try again online, {by_hand}")
    return found
