from kvtier.router.choose.scaling import least_is_best


def test_linear_from_the_most_to_the_least() -> None:
    assert least_is_best([5, 1, 3]) == [0.0, 1.0, 0.5]


def test_equal_values_and_none() -> None:
    assert least_is_best([2, 2]) == [1.0, 1.0]
    assert least_is_best([]) == []
