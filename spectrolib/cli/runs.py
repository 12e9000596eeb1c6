"""What the commands that work on clusters read from a run folder."""

from __future__ import annotations

from pathlib import Path

from ..text.jsonfiles import Fields, read_json


def settings_of_clusters(run: Path) -> dict:
    """The settings of `spectro cluster`; empty if it was not run."""
    file = run / "clusters.json"
    if not file.exists():
        return {}
    try:
        return dict(Fields(read_json(file), str(file)).table("settings", {}).content)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): run `spectro cluster {run}` again") from error


def clustered_result(run: Path):
    """The result, with the susceptibilities of the estimator that was clustered."""
    from ..estimator import with_estimator
    from ..run.store import open_result

    result = open_result(run)
    estimator = settings_of_clusters(run).get("estimator")
    return with_estimator(result, estimator) if estimator else result


def clustered_vectors(run: Path, result):
    """The vectors that `spectro cluster` cut: resolved rows of unit length, or standardised susceptibilities."""
    import numpy as np

    from ..estimator import standardise
    from ..run.resolved import rows_of

    if settings_of_clusters(run).get("rows") != "resolved":
        return standardise(result["susceptibility"].values, **standardisation(run))
    rows = rows_of(result)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def standardisation(run: Path) -> dict:
    """How the paper's rows are standardised: as `spectro cluster` did, or centred where it took resolved ones."""
    settings = {"rows": "center", "whiten": False} | settings_of_clusters(run)
    settings["rows"] = "center" if settings["rows"] == "resolved" else settings["rows"]
    return {"rows": None if settings["rows"] == "none" else settings["rows"], "whiten": settings["whiten"]}


CUT = "characters cut into several tokens show as �: name the measured model with --model"
"""Note for the user where a tokenizer is needed and missing."""


def tokenizer_for(run: Path, result, model: str):
    """The tokenizer for a result (None if it is not needed or not available), and whether it is needed and missing.

    A result has the text of each token. That is enough, unless characters are cut into several tokens.
    """
    from ..text.runningtext import MISSING

    cut = "text" in result.coords and any(MISSING in str(text) for text in result["text"].values)
    found = _tokenizer(run, model) if cut or model else None
    return found, cut and found is None


def _tokenizer(run: Path, model: str):
    """Of the model that is named, or of the measured one if it is at hand; None if it is not."""
    from ..model.loading import load_model
    from ..run.store import run_manifest

    if model:
        return load_model(model).tokens
    try:
        return load_model(measured_model(run), revision=run_manifest(run)["model"].get("revision")).tokens
    except (ValueError, ImportError, KeyError):
        return None


def measured_model(run: Path) -> str:
    """What `load_model` finds the measured model by.

    Raises:
        ValueError: if the run does not say which it was, as imported tables do not.
    """
    from ..run.replay import located
    from ..run.store import run_manifest

    measured = run_manifest(run)["model"]
    if not measured["hash"] and measured["name"] in ("", "unknown"):
        raise ValueError(f"{run} was imported from tables that do not name the measured model: name it with --model")
    return located(measured["name"], run)


def reader_of(run: Path, name: str):
    """The model whose activations are read, and whether it is the measured one."""
    from ..model.loading import load_model
    from ..run.store import run_manifest

    measured = run_manifest(run)["model"]
    if name:
        found = load_model(name)
        return found, found.hash == measured["hash"]
    kept = run / "model"  # of a model that came from no folder
    place = kept if kept.is_dir() else measured_model(run)
    try:
        found = load_model(place) if kept.is_dir() else load_model(place, revision=measured["revision"])
    except ValueError as error:
        raise ValueError(f"{error}; name the measured model with --model") from error
    if not kept.is_dir() and measured["hash"] not in ("", found.hash):
        raise ValueError(
            f"model {measured['name']!r} is another one now (hash {found.hash[:12]}) than the one that was measured "
            f"({measured['hash'][:12]}): name that one with --model"
        )
    return found, True


UNKNOWN = "the measured model is not at hand, so no rule speaks of what it expects: name it with --model"
"""What to say where a model is wanted and not there."""


def guesses_for(run: Path, result, model: str):
    """What the measured model expects at each token of a result, and how those tokens are called.

    None if that model, or the windows that it was measured on, are not to be had.
    """
    import numpy as np

    from ..dictionaries.windows import measured_windows
    from ..model.guesses import guesses
    from ..text.runningtext import token_names

    try:
        reader, measured = reader_of(run, model)
        windows = measured_windows(result, reader) if measured else None
    except (ValueError, ImportError, KeyError):
        return None
    if windows is None:
        return None
    place = np.unique(result["sequence"].values, return_inverse=True)[1] * (windows.length - 1)
    found = guesses(reader, windows).take(place + result["position"].values - 1)
    return found, {} if reader.tokens is None else token_names(reader.tokens, found.token)
