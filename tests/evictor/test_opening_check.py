import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.opening import check_store
from kvtier.evictor.options import EvictorOptions
from tests.evictor.scenes import TREE

OWN = StoreTree(TREE, is_foreign=False)
QUOTA = Bounds(Watermarks(2, 1))


def test_check_store_rejects_refused_tree() -> None:
    with pytest.raises(InvalidSettings, match="PATH: it is of format 7, or move the folder away"):
        check_store([TREE], [], {TREE: "it is of format 7"}, [], EvictorOptions())


def test_check_store_requires_folder_of_quota() -> None:
    options = EvictorOptions(quotas={TREE: QUOTA})
    check_store([TREE], [OWN], {}, [], options)
    check_store([TREE], [], {}, [f"{TREE}/blocks"], options)
    with pytest.raises(InvalidSettings, match="top: none, because no engine has written yet"):
        check_store([], [], {}, [], options)
    with pytest.raises(InvalidSettings, match=f"no folder other in the store; .* top: {TREE}"):
        check_store([TREE], [OWN], {}, [], EvictorOptions(quotas={"other": QUOTA}))


def test_check_store_accepts_unknown_names_beside_tree() -> None:
    options = EvictorOptions(delete_unknown=True)
    check_store([TREE, "abc", "blocks"], [OWN], {}, [], options)
    for top in ("abc", "blocks", "manifest.json"):
        with pytest.raises(InvalidSettings, match=f"PATH: {top} at its top"):
            check_store([top], [], {}, [], options)
    with pytest.raises(InvalidSettings, match="--delete-unknown"):
        check_store(["data"], [], {}, [], options)
    check_store([], [], {}, [], options)
