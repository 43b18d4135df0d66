"""One conversion from start to end: compares tree and key space, then converts the blocks.

Invariants: nothing is written before tree and key space were found to agree in every field that
both record. A run that ended early can be resumed, because existing files are kept.
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
OnProgress = Callable[[Conversion, float], None]
"""Called with the report so far, and the estimated share done, 0 to 1."""


class ConversionOptions(NamedTuple):
    """The options of a conversion, as the user gave them."""

    source: str
    """A folder, or a bucket's URL."""
    destination: str
    """A folder, or a bucket's URL; with `vllm-fs` a folder only."""
    to: Direction = "kvtier"
    space: str | None = None
    """Name of the key space in the destination; with `vllm-fs` in the source."""
    manifest: Path | None = None
    """Manifest of a key space, instead of `space`."""
    tree: str | None = None
    """Name of the tree, if there are several."""
    key_files: Sequence[Path] = ()
    dry_run: bool = False
    limit: int | None = None


def convert(options: ConversionOptions, throttle: Throttle, on_progress: OnProgress) -> Conversion:
    """Convert until the end, until the limit, or until `throttle` is stopped.

    Raises InvalidSettings if tree and key space do not match, naming every field that differs, and
    if the storage fails. Holds one block per thread in memory.
    """
    run = _to_kvtier if options.to == "kvtier" else _to_vllm
    with ExitStack() as opened:
        try:
            return run(options, throttle, on_progress, opened)
        except OSError as error:
            raise InvalidSettings(
                f"{options.source} cannot be converted into {options.destination}: "
                f"{error.strerror or error}; fix that, then run the same command again to resume"
            ) from error


def _to_kvtier(
    options: ConversionOptions, throttle: Throttle, on_progress: OnProgress, opened: ExitStack
) -> Conversion:
    source = opened.enter_context(closing(open_view(options.source, "SOURCE")))
    tree = choose_tree(source, options.tree)
    destination = None
    if options.manifest is None:
        destination = _open_destination(options, opened)
        manifest = _chosen_space(options, destination)
    else:
        manifest = _read_manifest(options)
        if is_url(options.destination) or Path(options.destination).exists():
            destination = _open_destination(options, opened)
    checksum = _checksum(options, manifest)
    space = manifest.space
    _compare(tree, space)
    report = _report(options, tree, space)
    importer = Importer(source, tree, space, checksum, destination, None)
    importer.check_lengths()
    if not options.dry_run:
        store = opened.enter_context(closing(open_store(options.destination, "DESTINATION")))
        ensure_manifest(store, space, checksum, "DESTINATION")
        destination = destination or _open_destination(options, opened)
        importer = Importer(source, tree, space, checksum, destination, store)
    run_jobs(importer.jobs(_refuser(report)), report, throttle, on_progress, options.limit)
    return report


def _to_vllm(
    options: ConversionOptions, throttle: Throttle, on_progress: OnProgress, opened: ExitStack
) -> Conversion:
    if is_url(options.destination):
        raise InvalidSettings(
            f"DESTINATION: {options.destination} is not a folder, as vLLM's fs tier needs"
        )
    if options.manifest is not None:
        raise InvalidSettings(
            "--manifest: SOURCE has the key space's manifest; name the key space with --space"
        )
    source = opened.enter_context(closing(open_view(options.source, "SOURCE")))
    manifest = _chosen_space(options, source)
    destination = _open_destination(options, opened)
    tree = choose_tree(destination, options.tree)
    if tree.tree.system != VLLM:
        raise InvalidSettings(
            f"{tree.base} is a tree of {tree.tree.system}; only vLLM's fs tier can be written to"
        )
    if not is_legal_part(tree.base):
        raise InvalidSettings(
            f"{printable(tree.base)} has characters that a store does not allow in names; only "
            "letters, digits, `-`, `_` and `.` can be written"
        )
    checksum = _checksum(options, manifest)
    _compare(tree, manifest.space)
    report = _report(options, tree, manifest.space)
    store = None
    if not options.dry_run:
        store = opened.enter_context(closing(open_store(options.destination, "DESTINATION")))
    rules = rules_of(manifest, checksum)
    exporter = Exporter(source, report.space, rules, tree, destination, store)
    run_jobs(exporter.jobs(_refuser(report)), report, throttle, on_progress, options.limit)
    return report


def _open_destination(options: ConversionOptions, opened: ExitStack) -> View:
    return opened.enter_context(closing(open_view(options.destination, "DESTINATION")))


def _chosen_space(options: ConversionOptions, view: View) -> SpaceManifest:
    """Return the manifest of the key space that --space names.

    There is no default, even for a single key space: by naming it, the user vouches for the fields
    that a tree does not record.
    """
    if options.space is None:
        known = ", ".join(found.name for found in find_spaces(view)) or "none yet"
        raise InvalidSettings(
            "--space: name the key space, because a tree does not record its revision, weights and "
            f"instruction set. {view.place} holds: {known}; an engine creates its key space when "
            "it first runs there, or give --manifest FILE"
        )
    name = Path(options.space).name
    if name not in space_names(view):
        raise InvalidSettings(
            f"--space: no key space {name} in {view.place}; an engine creates its key space when "
            "it first runs there, or give --manifest FILE"
        )
    (found,) = find_spaces(view, [name])
    if found.manifest is None:
        raise InvalidSettings(f"--space: the manifest of {found.name} {found.mistake}")
    return found.manifest


def _read_manifest(options: ConversionOptions) -> SpaceManifest:
    if options.space is not None:
        raise InvalidSettings("--manifest: give it or --space, not both")
    path = options.manifest
    assert path is not None
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        manifest = parse_manifest(read_whole(os.open(path, flags), MANIFEST_BYTES_MAX))
    except OSError as error:
        raise InvalidSettings(f"--manifest: {path} cannot be read: {error.strerror}") from error
    except InvalidSettings as error:
        raise InvalidSettings(f"--manifest: {path}: {error}") from error
    if not 1 <= manifest.space.block_bytes <= BLOCK_BYTES_MAX or manifest.space.world_size < 1:
        raise InvalidSettings(f"--manifest: {path} has a size of blocks that no engine uses")
    return manifest


def _checksum(options: ConversionOptions, manifest: SpaceManifest) -> Checksum:
    checksum = Secrets(options.key_files).checksum_of(manifest)
    if checksum is None:
        raise InvalidSettings(
            "--key-file: the key space is written with a secret; give the file that its engines "
            "use as shared.key_file"
        )
    return checksum


def _compare(tree: FoundTree, space: KeySpace) -> None:
    if found := mismatches(tree.tree, space):
        raise InvalidSettings(
            f"{printable(tree.base)} does not hold blocks of {space_folder(space)}; nothing was "
            f"converted (tree != key space): {'; '.join(map(printable, found))}"
        )


def _report(options: ConversionOptions, tree: FoundTree, space: KeySpace) -> Conversion:
    return Conversion(
        source=printable(options.source),
        destination=printable(options.destination),
        to=options.to,
        tree=printable(tree.base),
        system=tree.tree.system,
        space=space_folder(space),
        unproven=unproven(tree.tree),
        dry_run=options.dry_run,
    )


def _refuser(report: Conversion) -> Callable[[str, OSError], None]:
    def refused(name: str, error: OSError) -> None:
        report.refuse(printable(name), "unreadable", error.strerror or str(error))

    return refused
