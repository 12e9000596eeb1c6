"""A run repeated from its folder: the plan that its manifest tells of, its texts found and cut again.

A manifest names model and texts, and holds hashes of both. So what is made again is that run's input or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from ..model.loading import LanguageModel
from ..posterior import Settings
from ..text.corpus import Windows, bundled_windows
from ..text.jsonfiles import Fields
from .plan import Plan
from .profiles import BOOK, PROFILES, Profile
from .store import run_manifest

ROLES = ("sampling", "loss", "probe")


class PastRun:
    """What a run was made with, as its manifest tells.

    Args:
        run: a run folder.

    Raises:
        ValueError: if it is none, or was imported, or its manifest holds something that is not known.
    """

    def __init__(self, run: str | Path):
        self.run, self.manifest = Path(run), run_manifest(run)
        self.fields = Fields(self.manifest, str(self.run / "manifest.json"))
        held = self.fields.table("settings").content
        if unknown := sorted(held.keys() ^ {field.name for field in fields(Settings)}):
            raise ValueError(
                f"{self.run} can't be measured again: its settings are not those of this version ({', '.join(unknown)})"
            )
        windows = self.fields.table("windows")
        self.windows = {role: windows.table(role) for role in ROLES}

    @property
    def model(self) -> str:
        """What `load_model` finds the run's model by: its name, or where the run keeps a model that had no folder."""
        kept = self.run / "model"
        name = self.fields.table("model").word("name")
        return str(kept) if kept.is_dir() else located(name, self.run)

    @property
    def revision(self) -> str:
        return self.manifest["model"].get("revision") or ""

    @property
    def sources(self) -> dict[str, str]:
        """Where the windows came from: sampling and loss windows, and probe windows.

        Raises:
            ValueError: if the manifest does not say.
        """
        found = {}
        for role in ("sampling", "probe"):
            source = self.windows[role].content.get("source")
            if not isinstance(source, str) or not source:
                raise ValueError(
                    f"{self.run} does not say which text its {role} windows were cut from: give it with "
                    f"{'--text' if role == 'sampling' else '--probe'} or its data set"
                )
            found[role] = located(source, self.run)
        return found

    @property
    def profile(self) -> Profile:
        """The constants of the run, as a profile of the bundled text."""
        count, length = {}, 0
        for role, windows in self.windows.items():
            count[f"{role}_windows"], length = windows.wholes("shape", 2)
        settings = Settings(**self.manifest["settings"])
        return replace(
            BOOK,
            name=f"of {self.run}",
            model=self.model,
            length=length,
            settings=settings,
            first_order=bool(self.manifest.get("first_order", False)),
            **count,
        )

    def is_bundled(self, role: str) -> bool:
        """Whether those windows are among those that come with the library."""
        split = "heldout" if role == "probe" else "sampling"
        return self.windows[role].content.get("source") == bundled_windows(split).provenance.get("source")

    @property
    def changes(self) -> dict:
        """Fields of the plan besides model, windows and settings."""
        found = {name: self.manifest[name] for name in ("estimator", "blocks") if name in self.manifest}
        found |= {"components": tuple(self.fields.words("components")), "channels": self.manifest.get("channels", 0)}
        passes = self.fields.table("machine", {}).whole("tokens_per_pass", None)
        return found | ({"tokens_per_pass": passes} if passes else {})

    def check_model(self, model: LanguageModel) -> None:
        """Refuse a model whose weights are not those that the run measured."""
        held = self.manifest["model"]["hash"]
        if (self.run / "model").is_dir():  # of a model that came from no folder: its hash is another
            return
        if held != model.hash:
            raise ValueError(
                f"model {model.name!r} is another one now (hash {model.hash[:12]}) than the one that {self.run} "
                f"measured ({held[:12]}): bring that one back, or name one with --model"
            )

    def check_windows(self, plan: Plan, roles: Sequence[str]) -> None:
        """Refuse windows that are not those of the run."""
        for role in roles:
            windows: Windows = getattr(plan, role)
            held = self.windows[role].content.get("hash", "")
            if windows.hash != held:
                raise ValueError(
                    f"the {role} windows cut from {self.windows[role].content.get('source')!r} are others now (hash "
                    f"{windows.hash[:12]}) than those of {self.run} ({held[:12]}): the text or the tokenizer has "
                    "changed. Bring it back, or name text with --text or --data"
                )


def located(name: str, run: Path) -> str:
    """Where a file or folder lies that a manifest names.

    Earlier versions wrote names as they were typed: such a one is looked for from here, and from the folders above the
    run's. What is not found keeps its name.
    """
    if not name or Path(name).expanduser().is_absolute():
        return name
    for base in (Path(), *run.resolve().parents):
        if (base / name).exists():
            return str((base / name).resolve())
    return name


def profile_of_source(source: str) -> Profile | None:
    """The profile whose text a data set of the hub is: of it no more is read than the profile asks for."""
    return next((profile for profile in PROFILES.values() if profile.source == source), None)
