from kvtier.testing.samples import sample_space


def test_a_field_may_differ() -> None:
    assert sample_space() == sample_space()
    assert sample_space().differing(sample_space(model="other")) == ["model: 'tiny' != 'other'"]
