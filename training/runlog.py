"""The run folder: config.json, metrics.csv, curves.png, report.txt, and TensorBoard or W&B on request.

Every file is replaced whole (see `basics.files`), so a run that is killed leaves none of them torn, and
one that resumes calls `RunLog.truncate_after` with its checkpoint's epoch: no row is lost or doubled.

    log = RunLog(folder, vars(args), resume=False)
    log.log_epoch({"epoch": 1, "train_loss": 1.5, "val_loss": 1.2, "val_miou": 0.31})
    log.draw_curves()
    log.write_report({"scores": {"best mIoU": 0.31}})
    log.close()
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from basics.errors import UserError
from basics.files import replacing, write_text
from basics.machine import describe_start
from basics.optional_packages import need
from basics.text import csv_text, format_report
from training.curves import draw_curves

Cell = float | int | str | None
Row = dict[str, Any]  # an epoch's cells by column; "epoch" is an int

CONFIG, METRICS, CURVES, REPORT = "config.json", "metrics.csv", "curves.png", "report.txt"
SELDOM_S = 30.0  # between two drawings of curves.png, which takes a third of a second


class RunLog:
    """Writes one run's folder.

    Args:
        folder: ``OUTPUT_DIR/NAME``; made when it is missing.
        config: the resolved arguments (and anything else worth keeping), JSON-like; paths become text.
        tensorboard: also write event files to ``folder/tensorboard``.
        wandb: also log to Weights & Biases, in the project named by WANDB_PROJECT.
        resume: go on with the folder's metrics; otherwise the folder must not hold any.

    Raises:
        UserError: the folder holds another run's metrics, its files cannot be read, or an
            optional package is absent.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, object],
        tensorboard: bool = False,
        wandb: bool = False,
        resume: bool = False,
    ):
        self.folder = Path(folder)
        if not resume:
            require_unused(self.folder)
        self._rows = read_metrics(self.folder / METRICS)
        self._tensorboard, wandb_module = import_loggers(tensorboard, wandb)
        self._writer: Any = None
        self.config: dict[str, Any] = {key: _jsonable(value) for key, value in config.items()}
        starts = self._earlier_starts() if resume else []
        self._drawn, self._drawn_rows = -math.inf, 0  # when curves.png was last drawn, and of how many epochs
        self.starts = [*starts, describe_start(str(self.config.get("device", "auto")))]
        content = {"arguments": self.config, "seed": self.config.get("seed"), "starts": self.starts}
        write_text(self.folder / CONFIG, json.dumps(content, indent=2) + "\n")
        self._wandb_run = self._start_wandb(wandb_module) if wandb_module else None

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row and write it through to the disk.

        ``row["epoch"]`` is an int greater than the last one's. A row may lack columns (an epoch
        without validation: empty cells) and may bring new ones.
        """
        row = {key: _plain(value) for key, value in row.items()}
        if self._rows and row["epoch"] <= self._rows[-1]["epoch"]:
            raise ValueError(f"epoch {row['epoch']} is already logged in {self.folder / METRICS}")
        self._rows.append(row)
        self._write_metrics()
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard:
            self._log_tensorboard(self._tensorboard, numbers)
        if self._wandb_run:
            self._wandb_run.log(numbers, step=row["epoch"])

    def truncate_after(self, epoch: int) -> None:
        """Drop the rows of epochs later than ``epoch``: what a resumed run will do again."""
        kept = [row for row in self._rows if row["epoch"] <= epoch]
        if len(kept) < len(self._rows):
            self._rows = kept
            self._write_metrics()

    def rows(self) -> list[Row]:
        """The rows so far, oldest first, each with every column; an empty cell is None."""
        columns = self._columns()
        return [{column: row.get(column) for column in columns} for row in self._rows]

    def draw_curves(self, seldom: bool = False) -> None:
        """(Re)write curves.png; nothing before the first row, or, if ``seldom``, soon after the last time: `close`
        makes good for it.
        """
        if self._rows and not (seldom and time.monotonic() - self._drawn < SELDOM_S):
            with replacing(self.folder / CURVES) as temporary:
                draw_curves(self.rows(), temporary, title=self.folder.name)
            self._drawn, self._drawn_rows = time.monotonic(), len(self._rows)

    def write_report(self, summary: Mapping[str, object]) -> None:
        """Write report.txt: ``summary``, then how the run was made.

        A value of ``summary`` that is itself a mapping becomes a section; the rest stand on top.
        """
        start = self.starts[-1]
        sections: dict[str, Mapping[str, object]] = {
            "": {key: value for key, value in summary.items() if not isinstance(value, Mapping)}
        }
        sections |= {key: value for key, value in summary.items() if isinstance(value, Mapping)}
        sections["hyperparameters"] = self.config
        sections["made with"] = {
            **{key: start[key] for key in ("device", "platform", "git commit", "command")},
            **start["versions"],
            "starts": len(self.starts),
        }
        write_text(self.folder / REPORT, format_report(f"Run {self.folder.name}", sections))

    def close(self) -> None:
        """Draw the curves to their end; flush and close what logs elsewhere. May be called twice."""
        if 0 < self._drawn_rows != len(self._rows):
            self.draw_curves()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(["epoch", *(key for row in self._rows for key in row)]))

    def _write_metrics(self) -> None:
        # Whole and by rename, not appended: a file of a few hundred short rows costs nothing to
        # rewrite, can never end in half a row, and can take a new column.
        write_text(self.folder / METRICS, csv_text(self._rows, self._columns()))

    def _earlier_starts(self) -> list[dict]:
        path = self.folder / CONFIG
        if not path.exists():
            return []
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a run's configuration ({error}): mend or remove it") from error

    def _log_tensorboard(self, module: ModuleType, numbers: Mapping[str, float]) -> None:
        epoch = numbers["epoch"]
        if self._writer is None:
            # Events of epochs that a killed run logged beyond its checkpoint are purged.
            self._writer = module.SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
        for key, value in numbers.items():
            if key != "epoch":
                self._writer.add_scalar(key, value, epoch)
        self._writer.flush()

    def _start_wandb(self, module: ModuleType) -> Any:
        # The id is kept in the folder, so that a resumed run goes on in the same chart.
        path = self.folder / "wandb_id.txt"
        if not path.exists():
            write_text(path, f"{self.folder.name}-{os.urandom(4).hex()}\n")
        return module.init(
            project=os.environ.get("WANDB_PROJECT", "segmentation-distillation"),
            name=self.folder.name,
            id=path.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(self.folder),
            config=self.config,
        )


def import_loggers(tensorboard: bool, wandb: bool) -> tuple[ModuleType | None, ModuleType | None]:
    """TensorBoard's writer and W&B where they are asked for.

    Raises:
        UserError: one is not installed.
    """
    writer = need("torch.utils.tensorboard", "tensorboard", "--tensorboard") if tensorboard else None
    return writer, need("wandb", "wandb", "--wandb") if wandb else None


def require_unused(folder: Path) -> None:
    """A `UserError` if a run has been written to ``folder``."""
    if epochs := len(read_metrics(folder / METRICS)):
        raise UserError(
            f"{folder} already holds a run of {epochs} epochs: pass --resume auto to go on with it, or another --name"
        )


def read_metrics(path: str | Path) -> list[Row]:
    """Read a metrics.csv: ints, floats (exactly as they were), text, None for an empty cell.

    A missing file has no rows. A file that is not a table with an ``epoch`` column is a `UserError`.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, strict=True)
        rows = [dict(zip(header, map(_parse, line), strict=True)) for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove it") from error
    if "epoch" not in header or not all(isinstance(row["epoch"], int) for row in rows):
        raise UserError(f"{path} is not a table of epochs: mend or remove it")
    return rows


def _plain(value: Any) -> Cell:
    """A Python number from what PyTorch and NumPy hand out; text and None as they are."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return int(value) if isinstance(value, int) else float(value)


def _parse(cell: str) -> Cell:
    if cell == "":
        return None
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)
