"""One file per architecture: `FAMILIES` by config.json's `model_type`. Needs no torch."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from runtime.moe.layout import ConfigJson, Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.kind: module.FAMILY
    for module in (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
}


def family_of(raw: ConfigJson) -> Family:
    """The family of a config.json. Raises `DamagedCheckpoint` for one that Fallow does not know."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise raw.wrong("model_type", f"is {kind!r}, which Fallow does not run; it runs {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]
