import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.config.sections import extract
from kvtier.settings.document import parse_document

PLAIN = "kind: EndpointPickerConfig\nplugins: []\n"


def indented(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())


def test_extract_returns_a_plain_document() -> None:
    document = parse_document(PLAIN, "f.yaml")
    assert extract(document) is document


def test_extract_keeps_the_line_numbers_of_the_file() -> None:
    values = "# comment\nrouter:\n  epp:\n    custom:\n      a.yaml: |\n" + indented(PLAIN, 8)
    inner = extract(parse_document(values, "values.yaml"))
    assert inner.data["plugins"] == []
    assert inner.where(("plugins",)) == "values.yaml line 7"


def test_extract_selects_the_named_text_of_several() -> None:
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
def test_extract_rejects_a_file_without_a_configuration(text: str) -> None:
    with pytest.raises(InvalidSettings, match="f: contains no `kind: EndpointPickerConfig`"):
        extract(parse_document(text, "f"))


def test_extract_rejects_a_text_of_another_kind() -> None:
    with pytest.raises(InvalidSettings, match="f line 2: the text is no"):
        extract(parse_document("a:\n  b: |\n    # EndpointPickerConfig\n    x: 1\n", "f"))


def test_extract_names_the_line_of_invalid_embedded_yaml() -> None:
    with pytest.raises(InvalidSettings, match="f line 4: not valid YAML"):
        extract(parse_document("a:\n  b: |\n    kind: EndpointPickerConfig\n    x: a: b\n", "f"))


@pytest.mark.parametrize("several", [False, True])
def test_extract_rejects_an_unknown_text_name_with_a_suggestion(several: bool) -> None:
    values = "pluginsConfigFile: b.yml\npluginsCustomConfig:\n  b.yaml: |\n" + indented(PLAIN, 4)
    if several:
        values += "  other.yaml: |\n" + indented(PLAIN, 4)
    with pytest.raises(InvalidSettings) as caught:
        extract(parse_document(values, "f"))
    assert str(caught.value) == (
        "f line 1: pluginsConfigFile is 'b.yml', but there is no such text; did you mean 'b.yaml'?"
    )
