r"""Measurements of the authors' library ``devinterp`` 2.0.1, read as results of ours, and ours written as theirs.

Their sampler keeps the loss of every token at every draw, one `xarray.DataTree` (a Zarr store) for each component, and
computes susceptibilities from them afterwards. Ours keeps running sums. So there are five ways across:

    read_samples            their per-draw losses   ->  a result with all that our own has, but for the losses at w*
    read_susceptibilities   their finished table    ->  a result with the susceptibilities alone
    write_samples           a plan of ours          ->  per-draw losses that their functions take, from our engine
    susceptibility_tree     a result of ours        ->  their finished table, in memory
    write_susceptibilities  a result of ours        ->  the same as a Zarr store

Their finished table has the layout that they call SusceptibilitiesV2, after another program of theirs: a tree of two
groups, in which windows of all observables are laid end to end,

    /susceptibilities   sus (sus_flat, wr); of each row dataset_id, batch, target_position; wr names the components
    /context            input_ids (ctx_flat); of each token dataset_id, batch, position; position 0 is the first token

and in both an attribute dataset_id_to_name. Only `devinterp.slt.susceptibilities` knows the layout: there is no class
of that name, and no function of theirs reads or writes a file of it; what we write opens with `xarray.open_datatree`.
It has no place for error bars, halves, channels, documents or the text of tokens: these stay behind.

Both libraries estimate χ = -( mean_C[g d] - mean_C[g] mean_F[d] ) with g = L(w) - L(w*), d = l_xy - L(w), so that the
numbers agree to the rounding of float32. One thing differs: devinterp takes L(w*) from other batches than L(w), and a
constant added to g changes this estimate. `read_samples` does the same unless it is told L(w*) on the tokens of L.

Nothing here imports devinterp.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .. import estimator
from ..estimator import ESTIMATORS, CovarianceSums
from ..model.components import FULL, Component
from ..model.engine import one_thread
from ..model.loading import engine_of
from ..posterior import stable_seed
from ..text.runningtext import token_texts
from .files import refusing
from .plan import Plan
from .readings import readings
from .store import RunFolder

Tree = object
"""An `xarray.DataTree`."""

# Reading their draws -------------------------------------------------------------------------------------------------


class _Draws(NamedTuple):
    """What one component's store holds."""

    rise: Float[ndarray, "chain draw"]
    losses: Callable[[int], Float[ndarray, "draw token"]]
    """Probe losses of a chain, less the mean loss of the draw."""
    batch_loss: Float[ndarray, "chain draw"]


def read_samples(
    samples: str | Path | Mapping[str, str | Path | Tree],
    loss: str,
    *,
    probes: tuple[str, ...] = (),
    start_loss: float | None = None,
    tokenizer=None,
    model: str = "unknown",
    estimator_name: estimator.Estimator = "two_chain",
):
    """A result from the per-draw losses of ``devinterp.slt.sampling.sample``.

    Memory: the losses of one chain of one component at a time, and running sums.

    Args:
        samples: the folder of the stores that ``devinterp.slt.susceptibilities`` writes with ``output_path``
            (``samples_full.zarr``, ``samples_l0h1.zarr``, ...), or the stores (paths or trees) by component; ``full``
            must be there.
        loss: the observable on whose tokens L(w) is taken (their ``sampling_task``).
        probes: the observables whose tokens get a row; all but ``loss`` by default. Each is a domain.
        start_loss: L(w*) on the tokens of ``loss``, nats. By default the mean of their ``init_loss``, as they do, which
            is on other tokens.
        tokenizer: a `tokenizers.Tokenizer` to name the tokens with; else they are called by their number.
        model: what to call the model.
        estimator_name: which estimate the variable ``susceptibility`` holds.

    Returns:
        An `xarray.Dataset` as `result.assemble` describes, without ``loss`` and with ``block`` of length one. Losses
        at w* are not in their stores, so ``restricted_moment`` and ``full_moment`` are absolute.

    Raises:
        ValueError: if a store is missing, unfinished or of another kind; an observable is not in it, or differs
            between components; or a chain holds values that are not finite.
    """
    import xarray as xr

    if estimator_name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator_name!r}: it must be one of {ESTIMATORS}")
    stores = _stores(samples)
    full = _open(stores[FULL], FULL)
    probes = probes or tuple(name for name in _observables(full) if name != loss)
    if not probes:
        raise ValueError(f"there is no observable but {loss!r}: name the ones whose tokens get a row, probes=(...)")
    names = [name for name in stores if name != FULL]
    if not names:
        raise ValueError("there is no store but that of 'full': susceptibilities are of components")
    ids = [_ids(full, probe, FULL) for probe in probes]

    sums: dict[str, list[CovarianceSums]] = {}
    rise, batch_loss = {}, {}
    for name, store in stores.items():
        tree = full if name == FULL else _open(store, name)
        for probe, wanted in zip(probes, ids, strict=True):
            if not np.array_equal(_ids(tree, probe, name), wanted):
                raise ValueError(f"tokens of {probe!r} differ between components {name!r} and 'full'")
        draws = _draws(tree, name, loss, probes, start_loss)
        sums[name] = [_sum_up(draws.rise[k], draws.losses(k), name, k) for k in range(len(draws.rise))]
        rise[name], batch_loss[name] = draws.rise, draws.batch_loss
    settings = _settings(full)
    for name in names:
        if rise[name].shape != rise[FULL].shape:
            raise ValueError(
                f"component {name!r} has {rise[name].shape} chains and draws, 'full' has {rise[FULL].shape}: "
                "sample them all alike"
            )
    coordinates = _token_coordinates(ids, probes, tokenizer)
    manifest = {
        "model": {"name": model, "revision": None, "hash": ""},
        "windows": {"probe": {"shape": [sum(map(len, ids)), ids[0].shape[1]], "hash": "", "source": ", ".join(probes)}},
        "settings": settings,
        "components": names,
        "estimator": estimator_name,
        "blocks": 1,
        "versions": {"devinterp samples": "2.0.1 format"},
    }
    return _result(xr, names, sums, rise, batch_loss, coordinates, estimator_name, manifest)


def _stores(samples) -> dict[str, object]:
    """Stores by component, the components in our order as far as they are ours."""
    if isinstance(samples, Mapping):
        found = dict(samples)
    else:
        folder = Path(samples)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        whole = sorted(folder.glob(f"*_{FULL}.zarr"))
        if len(whole) != 1:
            raise ValueError(f"{folder} must hold one store *_{FULL}.zarr, it holds {len(whole)}")
        stem = whole[0].name.removesuffix(f"{FULL}.zarr")
        found = {path.name.removeprefix(stem).removesuffix(".zarr"): path for path in folder.glob(f"{stem}*.zarr")}
    if FULL not in found:
        raise ValueError(f"the store of the unrestricted chain, {FULL!r}, is missing: there are {sorted(found)}")
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> tuple:
    """Heads by layer, MLPs, embedding, unembedding, the whole; other names after them."""
    try:
        component = Component.of(name)
    except ValueError:  # theirs alone
        return (4, name, 0)
    rank = {"head": 0, "group": 0, "mlp": 1, "embed": 2, "unembed": 3, "full": 5}[component.kind]
    return (rank, component.layer or 0, component.index or 0)


def _open(store, name: str):
    import xarray as xr

    if not isinstance(store, str | Path):
        tree = store
    else:
        if not Path(store).exists():
            raise ValueError(f"no such store of component {name!r}: {store}")
        try:
            tree = xr.open_datatree(str(store), engine="zarr", consolidated=False)
        except Exception as error:  # the many ways in which a folder is no Zarr store
            raise ValueError(f"{store} is no Zarr store of devinterp's samples ({type(error).__name__})") from error
    if tree.attrs.get("completed") != 1:
        raise ValueError(f"the samples of component {name!r} are unfinished (no 'completed' mark): sample them again")
    return tree


def _observables(tree) -> list[str]:
    names = sorted(str(name) for name in tree.dataset.data_vars)  # a store lists them in any order
    return [name.removeprefix("loss_") for name in names if name.startswith("loss_")]


def _variable(tree, observable: str, component: str, kind: str = "loss"):
    if observable not in _observables(tree):
        raise ValueError(
            f"the samples of component {component!r} have no observable {observable!r}: there are {_observables(tree)}"
        )
    return tree[f"{kind}_{observable}"]


def _ids(tree, probe: str, component: str) -> Int[ndarray, "windows length"]:
    return np.asarray(_variable(tree, probe, component, "input_ids").values)


def _draws(tree, name: str, loss: str, probes: tuple[str, ...], start_loss: float | None) -> _Draws:
    """The draws of one component, probe losses read one chain at a time."""
    level = _variable(tree, loss, name).values.mean(axis=(2, 3), dtype=np.float64)  # (chain, draw)
    start = float(tree["init_loss"].values.mean(dtype=np.float64)) if start_loss is None else start_loss
    wrong = [int(k) for k in np.flatnonzero(~np.isfinite(level).all(axis=1))]
    if wrong or not np.isfinite(start):
        raise ValueError(
            f"component {name!r}, chains {wrong}: losses are not finite. devinterp leaves a failed chain so; "
            "sample this component again with a smaller step"
        )
    columns = [_variable(tree, probe, name) for probe in probes]

    def losses(chain: int) -> Float[ndarray, "draw token"]:
        read = [column.isel(chain=chain).values.reshape(level.shape[1], -1).astype(np.float64) for column in columns]
        found = np.concatenate(read, axis=1) - level[chain][:, None]
        if not np.isfinite(found).all():
            raise ValueError(f"component {name!r}, chain {chain}: probe losses are not finite; sample it again")
        return found

    batch = tree["sampling_loss"].values.mean(axis=(2, 3), dtype=np.float64)
    return _Draws(level - start, losses, batch)


def _sum_up(rise: Float[ndarray, " draw"], losses: Float[ndarray, "draw token"], name: str, chain: int):
    sums = CovarianceSums(losses.shape[1])
    for g, d in zip(rise, losses, strict=True):
        sums.update(g, d)
    return sums.control(rise, losses, stable_seed("controls", "devinterp", name, chain))


def _settings(tree) -> dict:
    """Their sampler's configuration under our names."""
    theirs = (tree.attrs.get("metadata") or {}).get("config", {}).get("sampler", {})
    extra = theirs.get("sampling_method_kwargs") or {}
    names = {
        "n_beta": "nbeta",
        "localization": "gamma",
        "lr": "step_size",
        "batch_size": "batch_size",
        "num_chains": "chains",
        "num_draws": "draws",
        "num_steps_bw_draws": "steps_between_draws",
        "num_burnin_steps": "burn_in",
        "match_sampling_input_ids_across_chains": "share_batches",
        "init_seed": "seed",
    }
    found = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    method = theirs.get("sampling_method")
    found["preconditioner"] = "rmsprop" if method == "rmsprop_sgld" else "none"
    if method == "rmsprop_sgld":
        found |= {"rms_decay": extra.get("alpha", 0.99), "rms_epsilon": extra.get("eps", 0.1)}
    return found | {"antithetic": False, "tilt": 0.0}


def _token_coordinates(ids: list[ndarray], probes: tuple[str, ...], tokenizer) -> dict:
    windows = [len(part) for part in ids]
    lengths = np.concatenate([np.full(len(part), part.shape[1] - 1) for part in ids])
    predicted = np.concatenate([part[:, 1:].ravel() for part in ids])
    text = token_texts(tokenizer, predicted)
    origin = np.repeat(np.array(probes, dtype=object), windows)
    own = np.concatenate([np.arange(count) for count in windows])
    document = np.array([f"{name}:{i}" for name, i in zip(origin, own, strict=True)], dtype=object)
    return {
        "sequence": ("token", np.repeat(np.arange(sum(windows)), lengths)),
        "position": ("token", np.concatenate([np.arange(1, length + 1) for length in lengths])),
        "token_id": ("token", predicted),
        "first_token": ("token", np.repeat(np.concatenate([part[:, 0] for part in ids]), lengths)),
        "text": ("token", np.array([text[int(i)] for i in predicted], dtype=object)),
        "domain": ("token", np.repeat(origin, lengths)),
        "document": ("token", np.repeat(document, lengths)),
    }


def _result(xr, names, sums, rise, batch_loss, coordinates, kind, manifest):
    """As `result.assemble`, of one block of draws."""
    full, sampled = sums[FULL], [*names, FULL]
    whole = estimator.merge_all(full)
    terms = {name: estimator.terms(estimator.merge_all(sums[name]), whole) for name in names}

    def table(of: Callable[[str], ndarray]) -> tuple[tuple[str, str], ndarray]:
        return ("token", "component"), np.stack([of(name) for name in names], axis=1)

    variables = {
        "susceptibility": table(lambda name: estimator.susceptibility(kind, sums[name], full)),
        "standard_error": table(lambda name: estimator.standard_error(kind, sums[name], full)),
        "covariance": table(lambda name: terms[name].covariance),
        "sample_covariance": table(lambda name: estimator.merge_all(sums[name]).sample_covariance()),
        "control_covariance": (
            ("control", "token", "component"),
            np.stack([estimator.merge_all(sums[name]).controls for name in names], axis=-1).astype(np.float32),
        ),
        "restricted_moment": table(lambda name: terms[name].restricted),
        "full_moment": ("token", whole.mean_losses),
        "rise": ("sampled", np.array([rise[name].mean() for name in sampled])),
        "loss_rise": (("sampled", "chain", "draw"), np.stack([rise[name] for name in sampled])),
        "batch_loss": (("sampled", "chain", "draw"), np.stack([batch_loss[name] for name in sampled])),
    }
    chains, draws = rise[FULL].shape
    if chains > 1:
        half = lambda name, h: sums[name][h::2]  # noqa: E731
        halves = [
            [
                [np.stack([estimator.susceptibility(e, half(name, h), half(FULL, h)) for name in names], axis=1)]
                for h in (0, 1)
            ]
            for e in ESTIMATORS
        ]
        dims = ("estimator", "half", "block", "token", "component")
        variables["half_susceptibility"] = (dims, np.array(halves, dtype=np.float32))
    labels = {"component": names, "sampled": sampled, "estimator": list(ESTIMATORS), "block": [draws]}
    return xr.Dataset(
        variables,
        coords=labels | {"control": list(estimator.CONTROLS)} | coordinates,
        attrs={"manifest": json.dumps(manifest, sort_keys=True), "estimator": kind, "origin": "devinterp"},
    )


def save_run(result, out: str | Path) -> Path:
    """Write an imported result as a run folder, so that ``spectro cluster``, ``cards``, ``map`` and ``info`` take it.

    Raises:
        ValueError: if the folder belongs to another measurement, or cannot be written.
    """
    run = RunFolder(out, json.loads(result.attrs["manifest"]))
    run.save_result(result)
    return run.path


# Their finished table ------------------------------------------------------------------------------------------------


def read_susceptibilities(tree, *, tokenizer=None, model: str = "unknown"):
    """A result with susceptibilities and tokens alone, from what ``devinterp.slt.susceptibilities`` returns.

    Args:
        tree: their `xarray.DataTree`, or the path of one that was saved with ``to_zarr``.
        tokenizer, model: as for `read_samples`.

    Raises:
        ValueError: if it is no such tree, or rows and tokens in it do not belong together.
    """
    import xarray as xr

    table, context = _groups(tree)
    chi, columns = table["sus"].values, [str(name) for name in table["wr"].values]
    origin = [str(name) for name in np.atleast_1d(table.attrs["dataset_id_to_name"])]
    dataset, batch, position = (table[name].values for name in ("dataset_id", "batch", "target_position"))
    places = np.stack([dataset, batch, position])
    predicted, first = _tokens_at(context, places), _tokens_at(context, np.stack([dataset, batch, 0 * position]))
    if not set(np.unique(dataset)) <= set(range(len(origin))):
        raise ValueError(
            f"dataset_id names {len(origin)} observables, but it goes from {dataset.min()} to {dataset.max()}"
        )
    text = token_texts(tokenizer, predicted)
    _, sequence = np.unique(places[:2], axis=1, return_inverse=True)
    domain = np.array([origin[int(i)] for i in dataset], dtype=object)
    order = sorted(range(len(columns)), key=lambda i: _order(columns[i]))
    columns, chi = [columns[i] for i in order], chi[:, order]
    shape = [int(sequence.max()) + 1, int(position.max()) + 1]
    manifest = {
        "model": {"name": model, "revision": None, "hash": ""},
        "windows": {"probe": {"shape": shape, "hash": "", "source": ", ".join(origin)}},
        "settings": {"chains": 0},
        "components": columns,
        "estimator": "two_chain",
        "versions": {"devinterp susceptibilities": "2.0.1 format"},
    }
    return xr.Dataset(
        {"susceptibility": (("token", "component"), chi)},
        coords={
            "component": columns,
            "sequence": ("token", sequence.ravel()),
            "position": ("token", position),
            "token_id": ("token", predicted),
            "first_token": ("token", first),
            "text": ("token", np.array([text[int(i)] for i in predicted], dtype=object)),
            "domain": ("token", domain),
            "document": ("token", np.array([f"{d}:{b}" for d, b in zip(domain, batch, strict=True)], dtype=object)),
        },
        attrs={"manifest": json.dumps(manifest, sort_keys=True), "estimator": "two_chain", "origin": "devinterp"},
    )


def _groups(tree) -> tuple:
    """The two groups of such a tree, with everything in them that a reader needs."""
    import xarray as xr

    if isinstance(tree, str | Path):
        try:
            tree = xr.open_datatree(str(tree), engine="zarr", consolidated=False)
        except Exception as error:  # the many ways in which a folder is no Zarr store
            raise ValueError(f"{tree} is no Zarr store of susceptibilities ({type(error).__name__})") from error
    found = []
    for group, names in (
        ("susceptibilities", {"sus": 2, "wr": 1, "dataset_id": 1, "batch": 1, "target_position": 1}),
        ("context", {"input_ids": 1, "dataset_id": 1, "batch": 1, "position": 1}),
    ):
        held = tree[group].dataset if group in tree.children else {}
        missing = [name for name, axes in names.items() if name not in held or held[name].ndim != axes]
        missing += [] if "dataset_id_to_name" in getattr(held, "attrs", {}) else ["dataset_id_to_name"]
        if missing:
            raise ValueError(
                f"this is no tree of devinterp's susceptibilities: its group {group!r} has no {', '.join(missing)}"
            )
        if not held.sizes[held["dataset_id"].dims[0]]:
            raise ValueError(f"the group {group!r} of this tree is empty")
        found.append(held)
    return tuple(found)


def _tokens_at(context, places: Int[ndarray, "3 n"]) -> Int[ndarray, " n"]:
    """The tokens at places: dataset, batch and position."""
    held = zip(*(context[name].values.tolist() for name in ("dataset_id", "batch", "position")), strict=True)
    token = dict(zip(held, context["input_ids"].values.tolist(), strict=True))
    wanted = list(zip(*places.tolist(), strict=True))
    if missing := [place for place in wanted if place not in token]:
        raise ValueError(f"no token of the context stands at dataset, batch and position {missing[0]}, but a row does")
    return np.array([token[place] for place in wanted])


def susceptibility_tree(result, first_tokens: Int[ndarray, " windows"] | None = None):
    """A result of ours as the tree that ``devinterp.slt.susceptibilities`` returns: one observable for each domain.

    Args:
        first_tokens: id of the first token of each window, in order of ``sequence``, for a result that does not hold it
            (an older one); -1 by default.

    Raises:
        ValueError: unless every window is whole, and there is one first token for each.
    """
    import xarray as xr

    sequence, position = result["sequence"].values, result["position"].values
    starts = np.flatnonzero(np.r_[True, np.diff(sequence) != 0])
    windows, lengths = len(starts), np.diff(np.r_[starts, len(sequence)])
    whole = np.concatenate([np.arange(1, length + 1) for length in lengths])
    if len(np.unique(sequence)) != windows or not np.array_equal(position, whole):
        raise ValueError(f"{len(sequence)} rows are not whole windows, each with its predictions from 1 on, in order")
    if first_tokens is None:
        first_tokens = result["first_token"].values[starts] if "first_token" in result else np.full(windows, -1)
    first = np.asarray(first_tokens)
    if first.shape != (windows,):
        raise ValueError(f"{windows} windows need as many first tokens, got an array of shape {first.shape}")
    domains = result["domain"].values[starts].astype(str)
    named = sorted(set(domains.tolist()))
    rows = np.argsort(domains, kind="stable")  # windows, by domain
    dataset = np.searchsorted(named, domains[rows])
    batch = np.concatenate([np.arange(count) for count in np.unique(dataset, return_counts=True)[1]])

    def flat(dim: str, name: str, begin: int) -> xr.Coordinates:
        """Places of all predictions (from 1), or of all tokens (from 0)."""
        sizes = lengths[rows] + 1 - begin
        positions = np.concatenate([np.arange(begin, length + 1) for length in lengths[rows]])
        columns = {"dataset_id": np.repeat(dataset, sizes), "batch": np.repeat(batch, sizes), name: positions}
        return xr.Coordinates({name: (dim, values) for name, values in columns.items()}, indexes={})

    parts = [slice(starts[w], starts[w] + lengths[w]) for w in rows]
    chi, token = result["susceptibility"].transpose("token", "component").values, result["token_id"].values
    ids = np.concatenate([piece for w, part in zip(rows, parts, strict=True) for piece in (first[[w]], token[part])])
    names = [str(name) for name in result["component"].values]
    attrs = {"dataset_id_to_name": named}
    table = xr.DataArray(np.concatenate([chi[part] for part in parts]), dims=["sus_flat", "wr"])
    context = xr.DataArray(ids.astype(np.int64), dims=["ctx_flat"])
    return xr.DataTree.from_dict(
        {
            "/susceptibilities": xr.Dataset(
                {"sus": table},
                coords=flat("sus_flat", "target_position", 1).merge(xr.Coordinates({"wr": names})),
                attrs=attrs,
            ),
            "/context": xr.Dataset({"input_ids": context}, coords=flat("ctx_flat", "position", 0), attrs=attrs),
        }
    )


def write_susceptibilities(result, path: str | Path, first_tokens: Int[ndarray, " windows"] | None = None) -> Path:
    """`susceptibility_tree` as a Zarr store, whole or not at all.

    ``xarray.open_datatree(path, engine="zarr", consolidated=False)`` reads it. Names of components are text of
    any length there, which the Zarr specification holds; a tree of theirs that is saved as it is has them in a fixed
    length, which the specification does not hold.

    Args:
        path: of the store; it must not be there.

    Raises:
        ValueError: as `susceptibility_tree`, or if there is something at ``path``, or it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} is there already: name another store")
    tree = susceptibility_tree(result, first_tokens)
    table = tree["susceptibilities"].dataset
    tree["susceptibilities"].dataset = table.assign_coords(wr=table["wr"].astype(object))
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            tree.to_zarr(Path(folder) / "store", mode="w", zarr_format=3, consolidated=False)
            (Path(folder) / "store").rename(path)
    return path


# Our draws as theirs -------------------------------------------------------------------------------------------------


def write_samples(plan: Plan, component: str, path: str | Path, *, loss: str = "loss", probe: str = "probe") -> Path:
    """Sample the chains of one component of a plan, and keep every loss of every draw as devinterp does.

    The chains are those of `measure`, so ``devinterp.slt.susceptibilities.compute_susceptibilities`` on such stores
    gives what `measure` gives, and ``compute_bif`` has what it needs; ``compute_llc`` has not: it reads the losses
    of every step. Our chains keep only the mean loss of a minibatch: every position of ``sampling_loss`` holds it.
    Takes 4 x chains x draws x tokens bytes, in memory too.

    Args:
        component: a component of the plan, or ``full``.
        path: the Zarr store to write; it must not be there.
        loss, probe: what to call the two observables.

    Raises:
        ValueError: for chains with a tilt, whose draws are of two posteriors; or if there is something at ``path``.
        ChainError: if a loss is not finite, or a chain is no longer local.
    """
    import xarray as xr

    path = Path(path)
    if plan.settings.tilt:
        raise ValueError(f"draws with a tilt of {plan.settings.tilt:g} are of two posteriors: take settings.plain()")
    if path.exists():
        raise ValueError(f"{path} is there already: name another store")
    held = {role: plan_windows.ids.astype(np.int64) for role, plan_windows in ((loss, plan.loss), (probe, plan.probe))}
    with one_thread():
        start, draws = _our_draws(plan, component)
    size = {name: len(ids) for name, ids in held.items()}
    variables = {"init_loss": (("chain", "token_pos"), np.repeat(start[None], len(draws[0]), axis=0))}
    for name, values in ((loss, draws[0]), (probe, draws[1])):
        variables[f"loss_{name}"] = (("chain", "draw", f"batch_{name}", "token_pos"), values)
        variables[f"input_ids_{name}"] = ((f"batch_{name}", "token"), held[name])
    batch = np.repeat(draws[2][:, :, None, None], len(start), axis=3)
    variables["sampling_loss"] = (("chain", "draw", "batch", "token_pos"), batch)
    s = plan.settings
    sampler = {
        "lr": s.step_size,
        "n_beta": s.nbeta,
        "localization": s.gamma,
        "batch_size": s.batch_size,
        "num_chains": len(draws[0]),
        "num_draws": s.draws,
        "num_burnin_steps": s.burn_in,
        "num_steps_bw_draws": s.steps_between_draws,
        "init_seed": s.seed,
        "sampling_method": "sgmcmc_sgld" if s.preconditioner == "none" else "rmsprop_sgld",
        "sampling_method_kwargs": {} if s.preconditioner == "none" else {"alpha": s.rms_decay, "eps": s.rms_epsilon},
        "match_sampling_input_ids_across_chains": s.share_batches,
    }
    observables = [{"type": "ObserveDifferentDataset", "obs_id": name, "batches_per_draw": size[name]} for name in held]
    attrs = {"metadata": {"config": {"sampler": sampler, "observables": observables}}, "completed": 1}
    dataset = xr.Dataset(variables, attrs=attrs)
    xr.DataTree(dataset).to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    return path


def _our_draws(plan: Plan, component: str) -> tuple[ndarray, tuple[ndarray, ndarray, ndarray]]:
    """L(w*) by position; losses of the loss and the probe windows and of the minibatch, by chain and draw."""
    engine, settings = engine_of(plan.model), plan.settings
    start = engine.losses(plan.loss).double().mean(dim=0).cpu().numpy()
    found: list[list[ndarray]] = [[], [], []]
    for chain in range(settings.chains):
        draws = readings(engine, [component], chain, settings, sampling=plan.sampling, probe=plan.probe, loss=plan.loss)
        read = ((one.loss.cpu().numpy(), one.probe.cpu().numpy(), np.array(one.draw.losses)) for one in draws)
        for kept, values in zip(found, zip(*read, strict=True), strict=True):
            kept.extend(np.stack(values, axis=1))  # (members, draws, ...)
    losses, probes, batches = (np.stack(part) for part in found)
    return start, (losses.astype(np.float32), probes.astype(np.float32), batches)
