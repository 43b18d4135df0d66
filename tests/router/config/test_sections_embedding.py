import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.config.sections import extract
from kvtier.settings.document import parse_document

PLAIN = "kind: EndpointPickerConfig\nplugins: []\n"


def indented(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())


def test_the_file_itself() -> None:
    document = parse_document(PLAIN, "f.yaml")
    assert extract(document) is document


def test_a_text_inside_counts_the_lines_of_the_file() -> None:
    values = "# comment\nrouter:\n  epp:\n    custom:\n      a.yaml: |\n" + indented(PLAIN, 8)
    inner = extract(parse_document(values, "values.yaml"))
    assert inner.data["plugins"] == []
    assert inner.where(("plugins",)) == "values.yaml line 7"


def test_of_several_the_one_that_is_named() -> None:
    values = (
        "pluginsConfigFile: b.yaml\npluginsCustomConfig:\n"
        "  a.yaml: |\n" + indented(PLAIN, 4) + "  b.yaml: |\n" + indented(PLAIN + "x: 1\n", 4)
    )
    assert extract(parse_document(values, "f")).data["x"] == 1
    with pytest.raises(
        InvalidSettings, match=r"several of .* \(a\.yaml, b\.yaml\); set pluginsConfigFile"
    ):
        extract(parse_document(values.replace("pluginsConfigFile: b.yaml\n", ""), "f"))


@pytest.mark.parametrize(
    "text", ["a: 1\n", "", "kind: ConfigMap\ndata: {a: EndpointPickerConfig}\n"]
)
def test_a_file_without_one_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="f: contains no `kind: EndpointPickerConfig`"):
        extract(parse_document(text, "f"))


def test_a_text_that_only_speaks_of_it_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidSettings, match="f line 2: the text is no"):
        extract(parse_document("a:\n  b: |\n    # EndpointPickerConfig\n    x: 1\n", "f"))


def test_yaml_that_is_broken_inside_names_the_line_of_the_file() -> None:
    with pytest.raises(InvalidSettings, match="f line 4: not valid YAML"):
        extract(parse_document("a:\n  b: |\n    kind: EndpointPickerConfig\n    x: a: b\n", "f"))


@pytest.mark.parametrize("several", [False, True])
def test_a_name_that_no_text_has_is_refused_with_the_nearest(several: bool) -> None:
    values = "pluginsConfigFile: b.yml\npluginsCustomConfig:\n  b.yaml: |\n" + indented(PLAIN, 4)
    if several:
        values += "  other.yaml: |\n" + indented(PLAIN, 4)
    with pytest.raises(InvalidSettings) as caught:
        extract(parse_document(values, "f"))
    assert str(caught.value) == (
        "f line 1: pluginsConfigFile is 'b.yml', but there is no such text; did you mean 'b.yaml'?"
    )
