"""Folders and repositories of the Hugging Face hub: which one is meant, whether it is within reach, one clear error."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basics.checkpoint import refuse_pointer
from basics.errors import UserError, reason_of
from segdata.class_tables import read_class_table

PROBE_TIMEOUT_S = 10
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Repository:
    """A folder with a network's files, or a repository of the hub.

    Attributes:
        spec: what the user wrote, ``hf:ORG/NAME@REVISION``.
        source: what the libraries want to be given: the folder, or ``ORG/NAME``.
        is_folder: it lies on this machine.
        revision: a branch, tag or commit; None: the newest.
    """

    spec: str
    source: str
    is_folder: bool
    revision: str | None = None

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever a library raises in here is one `UserError` that names the repository, the reason and the way on."""
        try:
            yield
        except UserError:
            raise
        except ImportError as error:
            raise UserError(f"{self.spec}: {reason_of(error)[:300]}") from error
        except Exception as error:  # the libraries and their transports have dozens
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"{self.spec}: holds code of its own that would have to be run, which is never done here; take a "
                    "network that the library itself has, or write a file: --teacher FILE.py:FUNCTION"
                ) from error
            if self.is_folder:
                raise UserError(f"{self.spec}: cannot be loaded: {reason_of(error)[:300]}") from error
            raise UserError(f"cannot download {self.spec} ({reason_of(error)[:300]}); {self._way_on}") from error

    @contextlib.contextmanager
    def built(self) -> Iterator[None]:
        """As `explained`, of what is done with the files once they are there: that is no failed download."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of whatever its layers are
            raise UserError(f"{self.spec}: cannot be used here: {reason_of(error)[:300]}") from error

    @property
    def _way_on(self) -> str:
        prefix = self.spec.partition(":")[0]
        return (
            f"is its name right? Where there is no network, bring its files (hf download {self.source} --local-dir "
            f"FOLDER) and give {prefix}:FOLDER"
        )

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Keywords of the libraries' ``from_pretrained``.

        huggingface_hub itself tries again and again, for minutes: it is asked for what it has where the hub is out of
        reach, and if that is nothing, the error comes at once.
        """
        if self.is_folder:
            return {}
        reason = out_of_reach()
        if reason and not cached(self.source, "config.json", self.revision):
            raise UserError(f"cannot download {self.spec} ({reason}); {self._way_on}")
        return {"revision": self.revision, "local_files_only": bool(reason)}

    def file(self, name: str) -> Path:
        """A file of the repository, fetched if need be.

        Raises:
            FileNotFoundError: it has none of that name.
            UserError: whether it has one cannot be found out, for the hub does not answer.
        """
        if self.is_folder:
            path = Path(self.source) / name
            if not path.is_file():
                raise FileNotFoundError(f"{name} is missing")
            return path
        import huggingface_hub

        try:
            return Path(huggingface_hub.hf_hub_download(self.source, name, **self.options))
        except huggingface_hub.errors.LocalEntryNotFoundError as error:  # not here, and the hub has not said that
            if not _known_to_be_missing(self.source, name, self.revision):
                reason = f"{name}: {reason_of(error)[:300]}"
                raise UserError(f"cannot download {self.spec} ({reason}); {self._way_on}") from error
            raise FileNotFoundError(f"{name} is missing") from error
        except huggingface_hub.errors.EntryNotFoundError as error:
            raise FileNotFoundError(f"{name} is missing") from error

    def first_file(self, names: Sequence[str]) -> Path | None:
        """The first of these files that can be had; None where the repository has none of them.

        Raises:
            UserError: none can be had, and of some it cannot be found out whether there are any.
        """
        trouble = None
        for name in names:
            try:
                return self.file(name)
            except FileNotFoundError:
                continue
            except UserError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble
        return None

    def listed_classes(self, count: int) -> list[str] | None:
        """The class names in the folder's ``classes.txt``, for a network of ``count`` classes; None without it.

        Raises:
            UserError: these are more or fewer.
        """
        listed = read_listed_classes(Path(self.source)) if self.is_folder else None
        if listed is not None and len(listed) != count:
            raise UserError(
                f"{self.spec}: {CLASSES_FILE} in that folder names {len(listed)} classes, the network has {count}: "
                "mend it, one name a line in the order of the network's outputs, or take it away"
            )
        return listed


def read_listed_classes(folder: Path) -> list[str] | None:
    """The class names in the ``classes.txt`` of a network's folder, in any of a class list's forms; None without it.

    Raises:
        UserError: it is none.
    """
    file = folder / CLASSES_FILE
    return read_class_table(file).names if file.is_file() else None


def find_repository(spec: str) -> Repository:
    """What ``PREFIX:PLACE`` means: a folder if there is one, otherwise ``ORG/NAME`` or ``ORG/NAME@REVISION``.

    Raises:
        UserError: it is neither.
    """
    place = spec.partition(":")[2]
    folder = Path(place or "no folder").expanduser()
    if folder.is_dir():
        files = sorted(filter(Path.is_file, folder.iterdir()))
        safe = any(file.suffix == ".safetensors" for file in files)  # then no other weights are looked at
        for file in files:
            if file.suffix in {".json", ".safetensors"} or not safe:
                refuse_pointer(file)
        return Repository(spec, str(folder), is_folder=True)
    if folder.is_file():
        raise UserError(f"{spec}: a file; give the folder with config.json and model.safetensors")
    name, _, revision = place.partition("@")
    if not REPOSITORY.fullmatch(name):
        raise UserError(f"{spec}: no such folder, and no repository of the hub either (those are ORGANISATION/NAME)")
    return Repository(spec, name, is_folder=False, revision=revision or None)


def cached(repository: str, filename: str, revision: str | None = None) -> bool:
    """Whether the hub's cache on this machine has the file."""
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision), str)


def _known_to_be_missing(repository: str, filename: str, revision: str | None) -> bool:
    """Whether the hub once said that the repository has no such file, which its cache keeps."""
    import huggingface_hub

    kept = huggingface_hub.try_to_load_from_cache(repository, filename, revision=revision)
    return kept is not None and not isinstance(kept, str)


def out_of_reach() -> str:
    """Why the hub cannot be asked, in words; "" where it answers. Behind a proxy the library is left to find out."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""
    hub = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    port = hub.port or {"http": 80}.get(hub.scheme, 443)
    try:
        socket.create_connection((hub.hostname, port), timeout=PROBE_TIMEOUT_S).close()
    except OSError as error:
        return f"{hub.hostname} cannot be reached: {error}"
    return ""
