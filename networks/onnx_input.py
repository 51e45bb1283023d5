"""How images go into an ONNX file: any number and size, or one by one, in batches of its own, at a size of its own.

Files say in their input's shape what they take; some claim more than is true, because an exporter has written the
example's batch or size into a Reshape. So what they claim to take is tried.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from basics.errors import UserError, reason_of

if TYPE_CHECKING:  # an optional package
    from onnxruntime import InferenceSession

PROBE = (128, 160)
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# What examples for exporters look like: (H, W), and images in a batch.
BAKED_SIZES = ((512, 512), (256, 256), (224, 224), (384, 384), (640, 640), (1024, 1024), (513, 513), (512, 1024))
BAKED_BATCHES = (1, 2, 4, 8)


class OnnxInput:
    """The one input of a file, and how to run it.

    Attributes:
        batch: images that it takes at once; None: any number.
        size: the only (H, W) that it takes; None: any.

    Raises:
        UserError: the input is no image batch, or the file runs at nothing that was tried.
    """

    def __init__(self, path: Path, session: InferenceSession):
        self.path = path
        inputs = session.get_inputs()
        shapes = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
        wanted = f"{path}: its input must be one image batch (N, 3, H, W) of floats, any N, H and W or fixed ones"
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in INPUT_TYPES:
            raise UserError(f"{wanted}; it is {shapes}")
        batch, channels, *size = inputs[0].shape
        if channels != 3 and size[1] == 3:
            raise UserError(f"{wanted}; it is {shapes}: channels last; export it with channels first")
        if isinstance(channels, int) and channels != 3:
            raise UserError(f"{wanted}; it is {shapes}: {channels} channels")
        fixed = [side for side in size if isinstance(side, int)]
        if len(fixed) == 1:
            raise UserError(f"{wanted}; it is {shapes}: one side is fixed, the other is not")
        self.name, self.type = inputs[0].name, INPUT_TYPES[inputs[0].type]
        self.batch: int | None = batch if isinstance(batch, int) else None
        self.size: tuple[int, int] | None = (fixed[0], fixed[1]) if fixed else None
        self._find_truth(session, shapes)

    @property
    def probe(self) -> tuple[int, int]:
        """A size (H, W) to try things at."""
        return self.size or PROBE

    def _find_truth(self, session: InferenceSession, shapes: str) -> None:
        """Find the batch and the size at which the file runs, where it claims to take any."""
        names = [entry.name for entry in session.get_outputs()]
        batches = BAKED_BATCHES if self.batch is None else (self.batch,)
        sizes = (PROBE, *BAKED_SIZES) if self.size is None else (self.size,)
        reason = ""
        for size, batch in itertools.product(sizes, batches):
            try:
                alone = self._run_once(session, distinct_noise(size, batch), names)
            except UserError as error:
                reason = reason or str(error)
                continue
            if any(values.ndim == 4 and len(values) != batch for values in alone):  # its pixels were dealt out anew
                continue
            if size != PROBE:
                self.size = size
            if self.batch is None and (batch > 1 or not self._takes_two(session, size, names, alone)):
                self.batch = batch
            return
        claim = f"; its input claims to be {shapes}: export it with dynamic axes, or with the size and batch it takes"
        raise UserError((reason or f"{self.path}: gives other numbers of maps than it is given images") + claim)

    def _takes_two(
        self, session: InferenceSession, size: tuple[int, int], names: list[str], alone: list[np.ndarray]
    ) -> bool:
        """Whether two images at once give for the first what it gave ``alone``."""
        try:
            both = self._run_once(session, distinct_noise(size, 2), names)
        except UserError:
            return False
        with np.errstate(invalid="ignore"):  # outputs that are not finite are refused for that
            return all(
                len(two) == 2 and np.abs(two[:1] - one).max(initial=0) <= 1e-2 * np.abs(one).max(initial=0)
                for one, two in zip(alone, both, strict=True)
                if one.ndim == 4
            )

    def run(self, session: InferenceSession, images: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        """Outputs (N, ...) float32 for ``images`` (N, 3, H, W) float32 of the file's own size, however many.

        Raises:
            UserError: it fails on them.
        """
        if self.batch is None:
            return self._run_once(session, images, outputs)
        parts = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        missing = self.batch - len(parts[-1])
        parts[-1] = np.concatenate([parts[-1], *[parts[-1][-1:]] * missing])  # a batch of its own is filled up
        results = [self._run_once(session, part, outputs) for part in parts]
        return [np.concatenate(values)[: len(images)] for values in zip(*results, strict=True)]

    def _run_once(self, session: InferenceSession, images: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        try:
            results = session.run(outputs, {self.name: images.astype(self.type, copy=False)})
        except Exception as error:  # ONNX Runtime's own classes share no base
            reason = reason_of(error)[:200]
            count, _, height, width = images.shape
            what = f"a batch of {count} image{'s' * (count > 1)} of {height}x{width} pixels"
            raise UserError(f"{self.path}: fails on {what}: {reason}") from error
        return [np.asarray(values).astype(np.float32, copy=False) for values in results]


def distinct_noise(size: tuple[int, int], images: int = 1) -> np.ndarray:
    """Random images (N, 3, H, W), always the same: constant ones hide how a network is built.

    Each next one is brighter and has more contrast: in a network where they see each other it shows.
    """
    values = np.random.default_rng(0).standard_normal((images, 3, *size), dtype=np.float32)
    number = np.arange(images, dtype=np.float32)[:, None, None, None]
    return values * (1 + number) + number
