import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Mark, Marks
from kvtier.evictor.layouts import Tree
from kvtier.evictor.opening import check_place
from kvtier.evictor.options import Options
from tests.evictor.scenes import TREE

OWN = Tree(TREE, is_foreign=False)
QUOTA = Marks(Mark(2, 1))


def test_a_tree_that_must_not_be_touched_stops_the_start() -> None:
    with pytest.raises(InvalidSettings, match="PATH: it is of format 7, or move the folder away"):
        check_place([TREE], [], {TREE: "it is of format 7"}, [], Options())


def test_a_quota_is_of_what_is_there_or_on_another_disk() -> None:
    options = Options(quotas={TREE: QUOTA})
    check_place([TREE], [OWN], {}, [], options)
    check_place([TREE], [], {}, [f"{TREE}/blocks"], options)
    with pytest.raises(InvalidSettings, match="top: none, as no engine has written yet"):
        check_place([], [], {}, [], options)
    with pytest.raises(InvalidSettings, match=f"no folder other in the store; .* top: {TREE}"):
        check_place([TREE], [OWN], {}, [], Options(quotas={"other": QUOTA}))


def test_beside_a_known_tree_the_rest_may_be_named_as_it_likes() -> None:
    options = Options(delete_unknown=True)
    check_place([TREE, "abc", "blocks"], [OWN], {}, [], options)
    for top in ("abc", "blocks", "manifest.json"):
        with pytest.raises(InvalidSettings, match=f"PATH: {top} at its top"):
            check_place([top], [], {}, [], options)
    with pytest.raises(InvalidSettings, match="--delete-unknown"):
        check_place(["data"], [], {}, [], options)
    check_place([], [], {}, [], options)
