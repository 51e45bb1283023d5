"""How the INT8 files beside this one were made: by commit 52ef94c, the last before weights were signed in ONNX files.

    git worktree add OLD 52ef94c
    PYTHONPATH=OLD python tests/golden/make_int8.py    # in the root of a checkout; takes seconds

`qat.pth` is of a --qat run of two epochs, `qat.onnx` its INT8 form.
"""

from __future__ import annotations

import shutil

import torch

import zoo
from tests.golden.make import FOLDER, MODELS, fixed_images, run

RUN = FOLDER / "qat_run"


def main() -> None:
    from basics.checkpoint import save_atomic
    from deploy.segmenter import load_segmenter

    zoo.MODELS |= MODELS
    data = ["--dataset", "folder", "--data-dir", f"{FOLDER}/data"]
    student = ["--student", "golden", "--student-weights", FOLDER / "run" / "last.pth"]
    size = ["--crop-size", "32", "--batch-size", "2", "--epochs", "2", "--warmup-epochs", "0", "--workers", "0"]
    place = ["--device", "cpu", "--output-dir", RUN.parent, "--name", RUN.name]
    run("train_kd", ["--qat", *data, *student, *size, *place])
    shutil.copy(RUN / "last.pth", FOLDER / "qat.pth")
    shutil.rmtree(RUN)
    run("quantize", [FOLDER / "qat.pth", "--output", FOLDER / "qat.onnx"])
    (FOLDER / "qat.pt2").unlink()  # PyTorch's own format: thirty times the size of all there is in it
    with torch.no_grad():
        logits = load_segmenter(FOLDER / "qat.pth", "cpu").model(fixed_images())[..., ::6, ::6].clone()
    save_atomic({"logits": logits}, FOLDER / "expected_int8.pth")


if __name__ == "__main__":
    main()
