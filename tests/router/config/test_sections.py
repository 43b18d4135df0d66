import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.choose.plugins import PluginParameters
from kvtier.router.config.sections import ConfigSection
from kvtier.router.scorers.session_affinity import PLUGIN as SESSION
from kvtier.settings.document import parse_document


class Some(PluginParameters, frozen=True, kw_only=True):
    depth_limit: int = 1
    share: float = 0.5


def section(text: str) -> ConfigSection:
    document = parse_document(text, "f")
    return ConfigSection(document, (), document.data)


def test_section_reads_values_with_their_lines() -> None:
    one = section("a: x\nb: 2\nc:\n- d: 1\n")
    assert one.text("a") == "x"
    assert one.text("z", "y") == "y"
    assert one.number("b", 1.0) == 2.0
    assert one.number("z", 1.0) == 1.0
    [item] = one.items("c")
    assert item.at == "f line 4"
    assert item.where("d") == "f line 4"


@pytest.mark.parametrize("weight", ["-1", ".nan", ".inf", "true", "'1'"])
def test_number_rejects_negative_and_non_numeric_values(weight: str) -> None:
    with pytest.raises(InvalidSettings, match=r"f line 1: a is .*; write a number of 0 or more"):
        section(f"a: {weight}").number("a", 1.0)


def test_section_errors_name_the_line() -> None:
    one = section("a: 1\nb: []\nc: text\nd:\n- 1\n")
    with pytest.raises(InvalidSettings, match="f line 1: a is 1; write a name"):
        one.text("a")
    with pytest.raises(InvalidSettings, match="f: z is missing"):
        one.text("z")
    for name in "bcz":
        with pytest.raises(InvalidSettings, match=f"{name} must be a non-empty list"):
            one.items(name)
    with pytest.raises(InvalidSettings, match="f line 5: 1 is not a mapping"):
        one.items("d")
    with pytest.raises(InvalidSettings, match=r"f line 4: unknown key 'd'; known are a, b, c"):
        one.only("abc")


def test_parameters_are_read_by_their_camel_case_names() -> None:
    assert section("parameters: {depthLimit: 3, share: 1}").parameters(Some) == Some(
        depth_limit=3, share=1.0
    )
    assert section("parameters:").parameters(Some) == Some()
    assert section("a: 1").parameters(Some) == Some()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "parameters:\n  dephtLimit: 3",
            "line 2: unknown parameter 'dephtLimit'; did you mean 'de",
        ),
        ("parameters:\n  share: 1\n  depthLimit: x", "line 3: depthLimit: Expected `int`, got `s"),
        ("parameters: 3", "line 1: 3 is not a mapping"),
    ],
)
def test_parameter_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        section(text).parameters(Some)
    assert message in str(caught.value)


def test_nested_parameter_errors_name_the_line() -> None:
    text = "parameters:\n  sessionIdConfig:\n    sources:\n    - header: a\n    - header: 3\n"
    with pytest.raises(InvalidSettings, match=r"f line 5: sessionIdConfig\.sources\.1\.header: Ex"):
        section(text).parameters(SESSION.Parameters)
    with pytest.raises(InvalidSettings) as caught:
        section("parameters:\n  sessionIdConfig:\n    ttl: 3\n").parameters(SESSION.Parameters)
    assert str(caught.value) == (
        "f line 3: sessionIdConfig: Object contains unknown field `ttl`; "
        "known are evictionSweepSeconds, evictionTtlSeconds, sources"
    )
    with pytest.raises(InvalidSettings, match=r"sources\.1: .*`haeder`; did you mean 'header'\?"):
        section(text.replace("header: 3", "haeder: a")).parameters(SESSION.Parameters)
