"""One conversion from start to end: what a person wished, checked whole, then done.

Invariants: nothing is written before everything that can be compared was found to agree; a run
that ends early goes on where it stopped, because what exists is left as it is.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal, NamedTuple

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import KeySpace
from kvtier.conversion.exporting import Exporter
from kvtier.conversion.importing import Importer
from kvtier.conversion.trees import VLLM, FoundTree, choose_tree, mismatches, unproven
from kvtier.conversion.work import Conversion, run_jobs
from kvtier.errors import InvalidSettings
from kvtier.inspection.opening import is_url, open_store, open_view
from kvtier.inspection.segments import rules_of
from kvtier.inspection.spaces import (
    BLOCK_BYTES_MAX,
    MANIFEST_BYTES_MAX,
    Secrets,
    find_spaces,
    space_names,
)
from kvtier.inspection.state_file import read_whole
from kvtier.inspection.view import View, printable
from kvtier.inspection.workers import Throttle
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.manifest import SpaceManifest, ensure_manifest, parse_manifest
from kvtier.tiers.shared.store import is_legal_part

Direction = Literal["kvtier", "vllm-fs"]
Told = Callable[[Conversion, float], None]


class ConversionOptions(NamedTuple):
    """What a person asked for."""

    source: str
    """A folder, or a bucket's URL."""
    destination: str
    """The same; with `vllm-fs` a folder."""
    to: Direction = "kvtier"
    space: str | None = None
    """Name of the key space, in the destination; with `vllm-fs`, in the source."""
    manifest: Path | None = None
    """A key space's manifest, instead of `space`."""
    tree: str | None = None
    """Name of the tree where there are several."""
    key_files: Sequence[Path] = ()
    dry_run: bool = False
    limit: int | None = None


def convert(wish: ConversionOptions, pace: Throttle, told: Told) -> Conversion:
    """Convert until the end, the limit, or until `pace` is stopped.

    Raises InvalidSettings where the two sides do not fit, naming every field that differs, and
    where the destination refuses. Memory: a block a thread.
    """
    run = _to_kvtier if wish.to == "kvtier" else _to_vllm
    with ExitStack() as opened:
        try:
            return run(wish, pace, told, opened)
        except OSError as error:
            raise InvalidSettings(
                f"{wish.source} cannot be converted into {wish.destination}: "
                f"{error.strerror or error}; mend that and run the same again, it goes on where "
                "it stopped"
            ) from error


def _to_kvtier(
    wish: ConversionOptions, pace: Throttle, told: Told, opened: ExitStack
) -> Conversion:
    source = opened.enter_context(closing(open_view(wish.source, "SOURCE")))
    tree = choose_tree(source, wish.tree)
    destination = None
    if wish.manifest is None:
        destination = _open_destination(wish, opened)
        manifest = _chosen_space(wish, destination)
    else:
        manifest = _read_manifest(wish)
        if is_url(wish.destination) or Path(wish.destination).exists():
            destination = _open_destination(wish, opened)
    checksum = _checksum(wish, manifest)
    space = manifest.space
    _compare(tree, space)
    report = _report(wish, tree, space)
    importer = Importer(source, tree, space, checksum, destination, None)
    importer.check_lengths()
    if not wish.dry_run:
        store = opened.enter_context(closing(open_store(wish.destination, "DESTINATION")))
        ensure_manifest(store, space, checksum, "DESTINATION")
        destination = destination or _open_destination(wish, opened)
        importer = Importer(source, tree, space, checksum, destination, store)
    run_jobs(importer.jobs(_refuser(report)), report, pace, told, wish.limit)
    return report


def _to_vllm(wish: ConversionOptions, pace: Throttle, told: Told, opened: ExitStack) -> Conversion:
    if is_url(wish.destination):
        raise InvalidSettings(
            f"DESTINATION: {wish.destination} is no folder; vLLM's fs tier keeps files in one"
        )
    if wish.manifest is not None:
        raise InvalidSettings(
            "--manifest: the key space's own manifest is in SOURCE; name the key space with --space"
        )
    source = opened.enter_context(closing(open_view(wish.source, "SOURCE")))
    manifest = _chosen_space(wish, source)
    destination = _open_destination(wish, opened)
    tree = choose_tree(destination, wish.tree)
    if tree.tree.system != VLLM:
        raise InvalidSettings(
            f"{tree.base} is a tree of {tree.tree.system}; only vLLM's fs tier can be written to"
        )
    if not is_legal_part(tree.base):
        raise InvalidSettings(
            f"{printable(tree.base)} has characters that a store's names cannot have; only "
            "letters, digits, `-`, `_` and `.` can be written"
        )
    checksum = _checksum(wish, manifest)
    _compare(tree, manifest.space)
    report = _report(wish, tree, manifest.space)
    store = None
    if not wish.dry_run:
        store = opened.enter_context(closing(open_store(wish.destination, "DESTINATION")))
    rules = rules_of(manifest, checksum)
    exporter = Exporter(source, report.space, rules, tree, destination, store)
    run_jobs(exporter.jobs(_refuser(report)), report, pace, told, wish.limit)
    return report


def _open_destination(wish: ConversionOptions, opened: ExitStack) -> View:
    return opened.enter_context(closing(open_view(wish.destination, "DESTINATION")))


def _chosen_space(wish: ConversionOptions, view: View) -> SpaceManifest:
    """Never the only one without being told: naming it vouches for what a tree does not say."""
    if wish.space is None:
        known = ", ".join(found.name for found in find_spaces(view)) or "none yet"
        raise InvalidSettings(
            "--space: name the key space; a tree does not say which revision, weights and "
            f"instruction set it is of, and nobody should guess. In {view.place} there are: "
            f"{known}; an engine that ran with it once has made its own, or give --manifest FILE"
        )
    name = Path(wish.space).name
    if name not in space_names(view):
        raise InvalidSettings(
            f"--space: no key space {name} in {view.place}; an engine that runs with it once makes "
            "its own, or give --manifest FILE"
        )
    (found,) = find_spaces(view, [name])
    if found.manifest is None:
        raise InvalidSettings(f"--space: the manifest of {found.name} {found.mistake}")
    return found.manifest


def _read_manifest(wish: ConversionOptions) -> SpaceManifest:
    if wish.space is not None:
        raise InvalidSettings("--manifest: give it or --space, not both")
    path = wish.manifest
    assert path is not None
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        manifest = parse_manifest(read_whole(os.open(path, flags), MANIFEST_BYTES_MAX))
    except OSError as error:
        raise InvalidSettings(f"--manifest: {path} cannot be read: {error.strerror}") from error
    except InvalidSettings as error:
        raise InvalidSettings(f"--manifest: {path}: {error}") from error
    if not 1 <= manifest.space.block_bytes <= BLOCK_BYTES_MAX or manifest.space.world_size < 1:
        raise InvalidSettings(f"--manifest: {path} tells of blocks that no engine has")
    return manifest


def _checksum(wish: ConversionOptions, manifest: SpaceManifest) -> Checksum:
    checksum = Secrets(wish.key_files).fitting(manifest)
    if checksum is None:
        raise InvalidSettings(
            "--key-file: the key space is written with a secret; give the file that its engines "
            "have as shared.key_file"
        )
    return checksum


def _compare(tree: FoundTree, space: KeySpace) -> None:
    if found := mismatches(tree.tree, space):
        raise InvalidSettings(
            f"{printable(tree.base)} does not hold blocks of {space_folder(space)}, nothing was "
            f"converted (tree != key space): {'; '.join(map(printable, found))}"
        )


def _report(wish: ConversionOptions, tree: FoundTree, space: KeySpace) -> Conversion:
    return Conversion(
        source=printable(wish.source),
        destination=printable(wish.destination),
        to=wish.to,
        tree=printable(tree.base),
        system=tree.tree.system,
        space=space_folder(space),
        unproven=unproven(tree.tree),
        dry_run=wish.dry_run,
    )


def _refuser(report: Conversion) -> Callable[[str, OSError], None]:
    def refused(name: str, error: OSError) -> None:
        report.refuse(printable(name), "unreadable", error.strerror or str(error))

    return refused
