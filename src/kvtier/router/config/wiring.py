"""Which index each part of a configuration looks at, and in which tier.

Rules. A part that names a producer looks at that. A `prefix-cache-scorer` that names none has an
index of its own in the older API, and in the newer one looks at the producer that has no name
(`approx-prefix-cache-producer`), which is there without being written. Other parts that name none
look at all indexes. A part's tier is its parameter, else what its name speaks of, else its
index's. Where an index's own name speaks of no tier, it has that of the parts that look at it,
if they agree.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import Source
from kvtier.router.choose.parts import Parameters, Precise, Sizing, nearest, reads_index
from kvtier.router.choose.tier_names import tier_called, tier_hinted
from kvtier.router.config.indexes import APPROXIMATE, PRECISE, IndexSpec, estimated, precise

_PREFIX_SCORER: Final = "prefix-cache-scorer"
ANY: Final = "prefix"
"""The index that is made where parts want one and none is configured."""


class Wiring:
    """Grows while plugins are declared; then answers. `newer`: the newer API."""

    def __init__(self, *, newer: bool) -> None:
        self._newer = newer
        self._specs: dict[str, IndexSpec] = {}
        self._scorers: dict[str, Parameters] = {}
        self._wanted = False

    producers: Final[Mapping[str, type[Parameters]]] = {
        APPROXIMATE: Sizing,
        PRECISE: Precise,
    }
    """Plugins that are indexes, and their parameters."""

    def declare(self, name: str, parameters: Parameters) -> None:
        """A producer."""
        if isinstance(parameters, Sizing):
            self._specs[name] = estimated(name, parameters)
        elif isinstance(parameters, Precise):
            self._specs[name] = precise(name, parameters)

    def own(self, name: str, plugin_type: str, parameters: Parameters) -> None:
        """A part that may hold an index of its own."""
        if not reads_index(parameters):
            return
        self._wanted = True
        self._scorers[name] = parameters
        if getattr(parameters, "prefix_match_info_producer_name", ""):
            return
        if isinstance(parameters, Precise):
            self._specs[name] = precise(name, parameters)
        elif isinstance(parameters, Sizing) and (
            not self._newer or plugin_type != _PREFIX_SCORER or _sized(parameters)
        ):
            self._specs[name] = estimated(name, parameters)

    def looks_at(
        self, name: str, parameters: Parameters, where: str
    ) -> tuple[str | None, str | None]:
        """The index and the tier of a part, None for any; raises InvalidSettings."""
        if name not in self._scorers:
            return None, None
        index = self._index(name, parameters, where)
        tier = tier_called(getattr(parameters, "tier", ""))
        if not isinstance(parameters, Sizing):
            return index, tier
        tier = tier or tier_hinted(name)
        if tier is None and index in self._specs:
            tier = self._specs[index].tier
        return index, tier

    def indexes(self, looks: Iterable[tuple[str | None, str | None]]) -> dict[str, IndexSpec]:
        """All of them; `looks` is what `looks_at` told of every part."""
        if not self._specs and self._wanted:
            self._specs[ANY] = IndexSpec(name=ANY)
        specs = dict(self._specs)
        pairs = list(looks)
        for name, spec in specs.items():
            tiers = {tier for index, tier in pairs if index == name}
            if spec.tier is None and spec.source is Source.ESTIMATED and len(tiers) == 1:
                specs[name] = msgspec.structs.replace(spec, tier=tiers.pop())
        return specs

    def _index(self, name: str, parameters: Parameters, where: str) -> str | None:
        wanted = _named(parameters)
        asked = [name]
        while wanted in self._scorers:  # the older API names the scorer that has the index
            asked.append(wanted)
            if wanted in asked[:-1]:
                raise InvalidSettings(
                    f"{where}: {' looks at '.join(asked)}, and none of them has an index; "
                    "name a producer"
                )
            name, parameters = wanted, self._scorers[wanted]
            wanted = _named(parameters)
        if wanted:
            if wanted not in self._specs:
                raise InvalidSettings(
                    f"{where}: {name} looks at {wanted!r}, which no producer is called"
                    f"{nearest(wanted, self._specs)}"
                )
            return wanted
        if name in self._specs:
            return name
        if isinstance(parameters, Sizing):
            if APPROXIMATE not in self._specs:
                self._specs[APPROXIMATE] = estimated(APPROXIMATE, Sizing())
            return APPROXIMATE
        return None


def _named(parameters: Parameters) -> str:
    """The producer or scorer that a part names; empty for none."""
    return (
        getattr(parameters, "prefix_match_info_producer_name", "")
        or getattr(parameters, "prefix_plugin_name", "")
        or ""
    )


def _sized(parameters: Sizing) -> bool:
    """Whether it says how large its index is, which only an index of its own can be."""
    return any(
        getattr(parameters, field.name) != field.default
        for field in msgspec.structs.fields(Sizing)
        if field.name != "tier"
    )
