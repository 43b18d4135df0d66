"""Compares the key spaces of one model in pairs: what keeps them apart, and can it be changed?

Invariant: two key spaces are compared if their engines may have been meant to share, that is, if
they have the model's name or the weights in common.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kvtier.blocks.key import KeySpace
from kvtier.diagnosis.explanations import checkpoint, explain, remarks
from kvtier.diagnosis.report import (
    Check,
    Difference,
    Family,
    FamilyMember,
    SpacePair,
    Verdict,
    warned,
)
from kvtier.diagnosis.shapes import join_words

PAIRS_KEPT: Final = 200
"""Most pairs of a family that are compared; their number grows with the square of its size."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class LocatedSpace(NamedTuple):
    """A key space and where it was found."""

    place: str
    """Path or URL, as the user gave it."""
    name: str
    space: KeySpace
    witness: str | None = None
    """Identifies the secret that verifies its blocks; None for a disk tier, which has no secret."""


def compare(spaces: Sequence[LocatedSpace]) -> list[Family]:
    """Return the families of `spaces`, in the order in which they were found."""
    labels = _labels()
    return [_family([(next(labels), each) for each in kin]) for kin in _kin(spaces)]


def remarks_on(families: Sequence[Family]) -> list[Check]:
    """Return warnings about single key spaces."""
    return [
        warned(f"key space {member.label}", remark)
        for family in families
        for member in family.members
        for remark in remarks(member.space)
    ]


def difference(field: str, one: KeySpace, other: KeySpace) -> Difference:
    """Return the explained difference in `field`."""
    explanation = explain(field, one, other)
    return Difference(
        field=field,
        values=(getattr(one, field), getattr(other, field)),
        verdict=explanation.verdict,
        why=explanation.why,
        change=explanation.change,
    )


def _labels() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(_LETTERS, repeat=length):
            yield "".join(letters)


def _kin(spaces: Sequence[LocatedSpace]) -> list[list[LocatedSpace]]:
    """Group key spaces that have the name or the weights in common with one of their group."""
    families: list[tuple[set[str], list[LocatedSpace]]] = []
    for each in spaces:
        marks = {f"model {each.space.model}"}
        if weights := checkpoint(each.space):
            marks.add(f"weights {weights}")
        members = [each]
        apart = []
        for known, kin in families:
            if known & marks:
                marks |= known
                members = [*kin, *members]
            else:
                apart.append((known, kin))
        families = [*apart, (marks, members)]
    order = {id(each): number for number, each in enumerate(spaces)}
    found = [sorted(kin, key=lambda each: order[id(each)]) for _, kin in families]
    return sorted(found, key=lambda kin: order[id(kin[0])])


def _family(labelled: list[tuple[str, LocatedSpace]]) -> Family:
    couples = itertools.combinations(labelled, 2)
    count = len(labelled)
    return Family(
        models=list(dict.fromkeys(each.space.model for _, each in labelled)),
        members=[
            FamilyMember(label=label, place=each.place, name=each.name, space=each.space)
            for label, each in labelled
        ],
        pairs=[_pair(*couple) for couple in itertools.islice(couples, PAIRS_KEPT)],
        pairs_left_out=max(0, count * (count - 1) // 2 - PAIRS_KEPT),
    )


def _pair(one: tuple[str, LocatedSpace], other: tuple[str, LocatedSpace]) -> SpacePair:
    (label, seen), (other_label, other_seen) = one, other
    differences = [
        difference(field, seen.space, other_seen.space)
        for field in KeySpace.__struct_fields__
        if getattr(seen.space, field) != getattr(other_seen.space, field)
    ]
    verdict, conclusion = _conclude(differences, seen, other_seen)
    return SpacePair(
        one=label,
        other=other_label,
        verdict=verdict,
        conclusion=conclusion,
        differences=differences,
    )


def _conclude(
    differences: list[Difference], one: LocatedSpace, other: LocatedSpace
) -> tuple[Verdict | None, str]:
    never = [each.field for each in differences if each.verdict is Verdict.NEVER]
    if never:
        return Verdict.NEVER, f"cannot share: {join_words(never)} {_differ(never)}"
    change = [each.field for each in differences if each.verdict is not Verdict.FOLLOWS]
    if change:
        return Verdict.CHANGE, f"can share once {join_words(change)} {_agree(change)}"
    if None not in (one.witness, other.witness) and one.witness != other.witness:
        return (
            Verdict.CHANGE,
            "the same key space, verified with different secrets: give every engine the same "
            "key_file",
        )
    return None, "the same key space: engines share it if they use the same place"


def _differ(fields: list[str]) -> str:
    return "differ" if len(fields) > 1 else "differs"


def _agree(fields: list[str]) -> str:
    return "agree" if len(fields) > 1 else "agrees"
