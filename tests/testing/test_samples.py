from kvtier.testing.samples import sample_space


def test_sample_space_fields_can_be_replaced() -> None:
    assert sample_space() == sample_space()
    assert sample_space().differing(sample_space(model="other")) == ["model: 'tiny' != 'other'"]
