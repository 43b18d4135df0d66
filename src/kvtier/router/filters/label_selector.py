"""`label-selector-filter`: keeps the replicas whose labels match a Kubernetes label selector.

All of `matchLabels` and `matchExpressions` (In, NotIn, Exists, DoesNotExist) have to match.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LabelRequirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of `matchExpressions`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError unless In and NotIn, and only those, have values, as in Kubernetes."""
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            wanted = "no values" if self.values else "values"
            raise ValueError(f"values of {self.key}: {self.operator} takes {wanted}")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return True if `labels` meet the requirement; a missing label is not in any set."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelSelectorParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """A label selector; an empty one matches every replica."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: tuple[LabelRequirement, ...] = ()


class LabelSelectorFilter:
    """A filter by labels."""

    Parameters = LabelSelectorParameters

    def __init__(self, parameters: LabelSelectorParameters, context: plugins.PluginContext) -> None:
        self._labels = parameters.match_labels.items()
        self._requirements = parameters.match_expressions

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates whose labels match."""
        return [one for one in candidates if self._selects(one.endpoint.labels)]

    def _selects(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self._labels) and all(
            requirement.holds(labels) for requirement in self._requirements
        )


PLUGIN = LabelSelectorFilter
