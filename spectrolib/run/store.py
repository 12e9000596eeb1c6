"""What a run leaves on disk: partial sums of each finished task, the manifest, the labelled result.

    manifest.json     the plan: settings, components, seeds, hashes of model and windows, versions
    tasks/*.npz       one file a task (a group of components x a chain, or a shard of the probe windows of one): sums,
                      traces
    result.zarr       the labelled arrays (xarray), once every task is there

Files are written under another name and then renamed, so a run that is killed leaves only whole ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy import ndarray

from ..estimator import CovarianceSums, ResolvedSums, merge_all
from ..text.jsonfiles import Fields, read_json, short
from .files import only_writer, part_of, refusing, write_whole

if TYPE_CHECKING:
    from ..clustering import Clustering

T = TypeVar("T")


@dataclass(frozen=True)
class ComponentRecord:
    """What one chain of one component measured."""

    sums: tuple[CovarianceSums, ...]
    """Sums over consecutive blocks of draws, of equal size but for the last."""
    rise: ndarray
    """(draws,) L(w) - L(w*) on the loss windows, nats."""
    batch_loss: ndarray
    """(draws,) loss of the minibatch at the last step before each draw, nats."""
    resolved: ResolvedSums | None = None
    """The fluctuations of all losses, where channels are kept."""

    def pooled(self, blocks: int | None = None) -> CovarianceSums:
        """Its sums over all draws, or over those of its first blocks."""
        return merge_all(self.sums[:blocks])


@dataclass(frozen=True)
class GradientRecord:
    """What a stretch of the probe windows gave to first order (`model.gradients`)."""

    losses: ndarray
    """(tokens,) at w*, nats."""
    rows: ndarray
    """(halves, tokens, components, width) sketched gradients."""
    slopes: ndarray
    """(tokens, components) products with the gradient of the mean loss."""


class RunFolder:
    """The folder of one run.

    Args:
        path: created if it is not there.
        manifest: the plan as JSON-able values: the folder belongs to this plan from then on.

    Raises:
        ValueError: if the folder holds another plan (the message says where they differ), holds other files, or cannot
            be written.
    """

    def __init__(self, path: str | Path, manifest: Mapping):
        self.path = claim(path, manifest, inside="tasks")

    def alone(self) -> AbstractContextManager[None]:
        """What only one process may be in at a time: it writes here. A ValueError says that there is another."""
        return only_writer(self.path / "manifest.json", self.path)

    def task_file(self, name: str) -> Path:
        return self.path / "tasks" / f"{name}.npz"

    def has(self, name: str) -> bool:
        """Whether a task is finished."""
        return self.task_file(name).exists()

    def finished(self) -> dict[str, list[tuple[int, int] | None]]:
        """Finished stretches of the probe windows by the name of the whole task; None for all of it in one file."""
        return finished_tasks(self.path)

    def save_arrays(self, file: Path, arrays: Mapping[str, ndarray]) -> None:
        """Keep named arrays, whole or not at all."""
        _write_arrays(file, arrays)

    def save_task(self, name: str, records: Mapping[str, ComponentRecord] | GradientRecord) -> None:
        """Keep what a finished task measured, whole or not at all."""
        write_task(self.task_file(name), records)

    def load_task(self, name: str) -> dict[str, ComponentRecord]:
        """What a finished task measured.

        Raises:
            ValueError: if its file is damaged.
        """
        task = TaskFile(self.task_file(name))
        return {component: task.record(component) for component in task.components}

    def save_model(self, config: Mapping, weights: Mapping) -> Path:
        """Keep a model that came from no folder where workers can load it; returns its folder."""
        from safetensors.torch import save_file

        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        write_whole(folder / "model.safetensors", lambda part: save_file(tensors, part))
        text = json.dumps(config, indent=2, sort_keys=True, default=str)
        write_whole(folder / "config.json", lambda part: part.write_bytes(text.encode()))
        return folder

    @property
    def result_path(self) -> Path:
        return self.path / "result.zarr"

    def save_result(self, dataset) -> None:
        """Write the labelled result (an `xarray.Dataset`), replacing an earlier one."""
        temporary = self.path / "result.part.zarr"
        shutil.rmtree(temporary, ignore_errors=True)
        plain = _plain_text(dataset)
        try:
            with warnings.catch_warnings():  # one file of all metadata: no part of the format, but xarray looks for it
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                plain.assign_attrs({_DIGEST: digest_of(plain)}).to_zarr(
                    temporary, mode="w", zarr_format=3, consolidated=True
                )
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(error.errno, error.strerror or str(error), str(self.result_path)) from error
        shutil.rmtree(self.result_path, ignore_errors=True)
        os.replace(temporary, self.result_path)


def claim(
    path: str | Path, manifest: Mapping, kind: str = "run folder", of: str = "another plan", inside: str = ""
) -> Path:
    """Claim a folder for a manifest: a new folder gets it, an old one must hold the same.

    Args:
        path: created if it is not there.
        manifest: JSON-able values.
        kind, of: what error messages call the folder, and its content if it is another's.
        inside: a folder within it that is made, and that must be writable.

    Raises:
        ValueError: if the folder holds another manifest (the message says where they differ), holds other files, or
            cannot be written.
    """
    path, text = Path(path), json.dumps(manifest, indent=2, sort_keys=True)
    stored = path / "manifest.json"
    ours = (inside, part_of(stored).name, "manifest.part")  # the last: what earlier versions called it
    with refusing(f"the {kind} {path}"):
        path.mkdir(parents=True, exist_ok=True)
        strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
        if strangers and not stored.exists():
            raise ValueError(f"{path} is not a {kind} and not empty (it holds {strangers[0]}): name a new folder")
        (path / inside).mkdir(exist_ok=True)
        write_whole(path / inside / "writable", Path.touch)  # now, rather than after an hour
        (path / inside / "writable").unlink()
        if not stored.exists():
            write_whole(stored, lambda part: part.write_bytes(text.encode()))
    held, wanted = read_manifest(path), json.loads(text)
    if _same_model(held, wanted):
        wanted["model"] = held["model"]
    for role, windows in _same_windows(held, wanted).items():
        wanted["windows"][role] = windows
    if held != wanted:
        raise ValueError(
            f"{path} belongs to {of} ({'; '.join(_differences(held, wanted))}): name a new folder, or repeat that plan"
        )
    return path


def read_gradients(file: Path) -> GradientRecord:
    """What a finished task measured to first order.

    Raises:
        ValueError: if its file is damaged.
    """
    try:
        with np.load(file) as stored:
            return GradientRecord(**{name: stored[name] for name in GradientRecord.__dataclass_fields__})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, and the same measurement makes it again") from error


def write_task(file: Path, records: Mapping[str, ComponentRecord] | GradientRecord) -> None:
    """What a finished task measured, as a file: whole or not at all."""
    if isinstance(records, GradientRecord):
        return _write_arrays(file, vars(records))
    arrays: dict[str, ndarray] = {"components": np.array(list(records))}
    for i, record in enumerate(records.values()):
        arrays |= {f"{i}/rise": record.rise, f"{i}/batch_loss": record.batch_loss}
        for b, sums in enumerate(record.sums):
            arrays |= {f"{i}/{b}/{key}": np.asarray(getattr(sums, key)) for key in sums.ARRAYS}
        if record.resolved is not None:
            arrays |= {f"{i}/resolved/{key}": values for key, values in record.resolved.to_arrays().items()}
    _write_arrays(file, arrays)


def _write_arrays(file: Path, arrays: Mapping[str, ndarray]) -> None:
    write_whole(file, lambda part: np.savez(part, **arrays))


class TaskFile:
    """A finished task on disk, of which any stretch of tokens can be read without the rest.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
                if archive.testzip() is not None:
                    raise ValueError("a checksum differs")
                self.places = {info.filename.removesuffix(".npy"): _place(raw, info) for info in archive.infolist()}
                self.components = [str(name) for name in self._read(raw, "components")]
        except (OSError, EOFError, ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it, and the same measurement makes it again"
            ) from error

    @property
    def tokens(self) -> int:
        """Probe tokens that it holds sums of."""
        return self.places["0/0/mean_losses"][1][-1]

    def record(self, component: str, first: int = 0, end: int | None = None) -> ComponentRecord:
        """What the task measured of a component, of tokens ``first`` to ``end``."""
        i, sums = self.components.index(component), []
        with self.path.open("rb") as raw:
            while f"{i}/{len(sums)}/count" in self.places:
                block = f"{i}/{len(sums)}"
                arrays = {name: self._read(raw, f"{block}/{name}") for name in CovarianceSums.SCALARS}
                arrays |= {name: self._read(raw, f"{block}/{name}", first, end) for name in CovarianceSums.VECTORS}
                sums.append(CovarianceSums.from_arrays(arrays))
            return ComponentRecord(tuple(sums), self._read(raw, f"{i}/rise"), self._read(raw, f"{i}/batch_loss"))

    def resolved(self, component: str, first: int = 0, end: int | None = None) -> ResolvedSums | None:
        """The fluctuations of tokens ``first`` to ``end`` on a component's chain; None where no channels were kept."""
        place = f"{self.components.index(component)}/resolved"
        if f"{place}/count" not in self.places:
            return None
        with self.path.open("rb") as raw:
            arrays = {name: self._read(raw, f"{place}/{name}") for name in ResolvedSums.SCALARS + ResolvedSums.LISTS}
            arrays |= {name: self._read(raw, f"{place}/{name}", first, end) for name in ResolvedSums.VECTORS}
        return ResolvedSums.from_arrays(arrays)

    def _read(self, raw, name: str, first: int = 0, end: int | None = None) -> ndarray:
        """A stretch of the last axis of an array."""
        begin, shape, kind = self.places[name]
        *rows, length = shape or (1,)
        first, end, _ = slice(first, end).indices(length)
        found = np.empty((math.prod(rows), end - first), kind)
        for row, into in enumerate(found):
            raw.seek(begin + (row * length + first) * kind.itemsize)
            into[:] = np.frombuffer(raw.read(into.nbytes), kind)
        return found.reshape((*rows, end - first) if shape else ())


def _place(raw, info: zipfile.ZipInfo) -> tuple[int, tuple[int, ...], np.dtype]:
    """Where the numbers of an array begin that `numpy.savez` wrote, its shape, and its type."""
    raw.seek(info.header_offset + 26)
    raw.seek(sum(struct.unpack("<HH", raw.read(4))), os.SEEK_CUR)  # the name and the extra field
    np.lib.format.read_magic(raw)
    shape, _, kind = np.lib.format.read_array_header_1_0(raw)
    return raw.tell(), shape, kind


def finished_tasks(path: str | Path) -> dict[str, list[tuple[int, int] | None]]:
    """Finished stretches of a run's probe windows, by the name of the whole task; None for all of it in one file."""
    found: dict[str, list[tuple[int, int] | None]] = {}
    for file in sorted((Path(path) / "tasks").glob("*.npz")):
        whole, first, end = re.fullmatch(r"(.+?)(?:\.windows(\d+)-(\d+))?\.npz", file.name).groups()
        if not whole.endswith(".part"):
            found.setdefault(whole, []).append(None if first is None else (int(first), int(end)))
    return found


def open_result(path: str | Path):
    """The result of a finished run, as an `xarray.Dataset` in memory.

    Raises:
        ValueError: if there is no finished run at ``path``, or it does not hold what was written.
    """
    import xarray as xr

    result = Path(path) / "result.zarr"
    if not result.exists():
        raise ValueError(f"{path} holds no finished measurement (no result.zarr): run `spectro measure --out {path}`")
    try:
        with warnings.catch_warnings(action="ignore"), xr.open_zarr(result, consolidated=False) as dataset:
            found = _plain_text(dataset.load())
        written = found.attrs.pop(_DIGEST, None)  # not there in results of earlier versions
        if written not in (None, digest_of(found)):
            raise ValueError("it does not hold the numbers that were written")
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{result} is damaged ({reason}): delete it, and the same measurement makes it again"
        ) from error
    return found


_DIGEST = "sha256"
"""The attribute of a result on disk that says what was written: lost chunks of an array would read as zeros."""


def digest_of(dataset) -> str:
    """SHA-256 of all arrays of a dataset: their names, dimensions and contents."""
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        values, text = variable.values, variable.dtype.kind in "OUT"
        digest.update(json.dumps([name, variable.dims, variable.shape, "text" if text else values.dtype.str]).encode())
        plain = json.dumps(values.astype(object).tolist()).encode() if text else np.ascontiguousarray(values)
        digest.update(plain)
    return digest.hexdigest()


def _plain_text(dataset):
    """Text as Python strings: of any length, NUL characters included, and with a stable form in Zarr."""
    text = {name: array for name, array in dataset.coords.items() if array.dtype.kind in "UT"}
    return dataset.assign_coords({name: (array.dims, array.values.astype(object)) for name, array in text.items()})


def pack(result, path: str | Path, variables: Iterable[str] = ()) -> Path:
    """Write a result as one small file; of half estimates, those from all draws alone.

    Tables of tokens and components are kept in half precision, each column as a share of its largest entry: an error of
    2^-11 of an entry at most (for those below 6e-5 of the largest, 3e-8 of that), far below what the draws leave. All
    else is float32. Such files ship with the library (`shipped_result`), so that readers need not measure for an hour.

    Args:
        variables: those to keep; all by default.
    """
    import zarr

    path = Path(path)
    kept = result[list(variables)] if variables else result
    kept = kept.isel(block=[-1]) if "block" in kept.dims else kept
    small = kept.assign({name: _small(values) for name, values in kept.data_vars.items()})
    parts: dict = {}  # a zip file cannot replace its entries, as writing Zarr does
    _plain_text(small.assign_attrs(result.attrs)).to_zarr(zarr.storage.MemoryStore(parts), consolidated=False)

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w") as archive:
            for name in sorted(parts):
                archive.writestr(zipfile.ZipInfo(name), parts[name].to_bytes())  # without the time of writing

    write_whole(path, write)
    return path


def _small(values):
    """A table in half precision, with what its columns are multiples of; other numbers in single precision."""
    if not {"token", "component"} <= set(values.dims):
        return values.astype(np.float32) if values.dtype == np.float64 else values
    largest = abs(values).max([dim for dim in values.dims if dim != "component"])
    unit = largest.where(largest > 0, 1).astype(np.float32)
    return (values / unit).astype(np.float16).assign_attrs(multiply_by=unit.values.tolist())


def _large(values):
    """What `_small` made small, in single precision."""
    if "multiply_by" not in values.attrs:
        return values
    unit = np.array(values.attrs["multiply_by"], dtype=np.float32)
    table = values.transpose(..., "component")
    return table.copy(data=table.values.astype(np.float32) * unit).transpose(*values.dims).drop_attrs()


def open_packed(path: str | Path):
    """A result written by `pack`, as an `xarray.Dataset` in memory.

    Raises:
        ValueError: if there is no such file.
    """
    import xarray as xr
    import zarr

    if not Path(path).is_file():
        raise ValueError(f"there is no packed measurement at {path}")
    with zarr.storage.ZipStore(path, mode="r") as archive:
        held = xr.open_zarr(archive, consolidated=False).load()
    return _plain_text(held.assign({name: _large(values) for name, values in held.data_vars.items()}))


def save_json(folder: str | Path, name: str, content: Mapping) -> Path:
    """Write a table of a run, such as its cards, whole or not at all.

    Raises:
        ValueError: if the folder cannot be written.
    """
    file, text = Path(folder) / name, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
    with refusing(folder):
        write_whole(file, lambda part: part.write_bytes(text.encode()))
    return file


def open_json(folder: str | Path, name: str, form: int, command: str, read: Callable[[dict], T]) -> T:
    """What ``read`` makes of a table that `save_json` wrote.

    Args:
        form: the ``format`` that it must have.
        command: the `spectro` command that makes it.

    Raises:
        ValueError: if there is none, or the file is damaged or of another format.
    """
    file, again = Path(folder) / name, f"run `spectro {command} {folder}`"
    if not file.exists():
        raise ValueError(f"{folder} holds no {file.stem} (no {name}): {again}")
    try:
        content = read_json(file)
        if content["format"] != form:
            raise ValueError(f"format {content['format']} instead of {form}")
        return read(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): {again} again") from error


def save_clusters(clustering: Clustering, folder: str | Path, summary: Mapping) -> None:
    """Write clusters.npz, the fields of a clustering, and clusters.json, a summary; each whole or not at all.

    Raises:
        ValueError: if the folder cannot be written.
    """
    folder, text = Path(folder), json.dumps(summary, indent=2) + "\n"
    fields = {name: value for name, value in asdict(clustering).items() if value is not None}
    with refusing(folder):
        write_whole(folder / "clusters.npz", lambda part: np.savez_compressed(part, **fields))
        write_whole(folder / "clusters.json", lambda part: part.write_text(text, encoding="utf-8"))


def open_clusters(folder: str | Path) -> Clustering:
    """The clusters that `save_clusters` wrote.

    Raises:
        ValueError: if there are none, or the file is damaged.
    """
    from ..clustering import OPTIONAL, Clustering  # compiles: takes a second

    file = Path(folder) / "clusters.npz"
    if not file.exists():
        raise ValueError(f"{folder} holds no clusters (no clusters.npz): run `spectro cluster {folder}`")
    try:
        with np.load(file) as arrays:
            names = [name for name in Clustering.__dataclass_fields__ if name in arrays or name not in OPTIONAL]
            fields = {name: arrays[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}): run `spectro cluster {folder}` again") from error
    fields |= {name: fields[name].item() for name in ("seeds_tried", "finished")}
    return Clustering(**fields)


def read_manifest(path: str | Path) -> dict:
    """The manifest of a run folder, or of a bank of draws.

    Raises:
        ValueError: if there is none, or it is damaged.
    """
    file = Path(path) / "manifest.json"
    if not file.is_file():
        raise ValueError(f"{path} is not a run folder: it has no manifest.json")
    return read_json(file)


def run_manifest(path: str | Path) -> dict:
    """The manifest of a run folder, with what every run's says.

    Raises:
        ValueError: if there is none, or it lacks something.
    """
    manifest = read_manifest(path)
    fields = Fields(manifest, str(Path(path) / "manifest.json"))
    for name in ("name", "hash"):
        fields.table("model").word(name)
    for name in ("settings", "windows", "versions"):
        fields.table(name)
    fields.table("settings").whole("chains", least=0)
    for role, windows in fields.table("windows").content.items():
        fields.table("windows").table(role)
        Fields({"shape": windows.get("shape")}, f"{role} in windows in {fields.source}").wholes("shape", 2)
    fields.words("components")
    fields.word("estimator")
    return manifest


def _same_model(held: Mapping, wanted: Mapping) -> bool:
    """Whether two manifests are of the same weights, whatever the place is called where they lie."""
    models = [manifest.get("model") for manifest in (held, wanted)]
    hashes = {model.get("hash") if isinstance(model, dict) else None for model in models}
    return len(hashes) == 1 and not hashes & {None, ""}


def _same_windows(held: Mapping, wanted: Mapping) -> dict[str, dict]:
    """The windows of ``held`` that are those of ``wanted``, whatever the place is called where their text lies."""
    pairs = [manifest.get("windows") for manifest in (held, wanted)]
    if not all(isinstance(windows, dict) for windows in pairs):
        return {}
    hashes = [{role: own.get("hash") for role, own in windows.items() if isinstance(own, dict)} for windows in pairs]
    return {role: pairs[0][role] for role, own in hashes[0].items() if own and own == hashes[1].get(role)}


def _differences(held, wanted, where: str = "") -> list[str]:
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = sorted(held.keys() | wanted.keys())
        found = [_differences(held.get(key), wanted.get(key), f"{where}.{key}".lstrip(".")) for key in keys]
        return [difference for differences in found for difference in differences]
    return [] if held == wanted else [f"{where}: there {short(held)}, here {short(wanted)}"]
