"""Renders the settings tree as text: an annotated YAML file, the reference page, `config show`.

All of it is derived from `options`, so it cannot go stale. The output of `render_yaml` and of
`render_values` is valid input for `layers.load`.
"""

import textwrap
from collections.abc import Iterator, Mapping

from kvtier.settings.compat.vllm import ENGINE_KEYS
from kvtier.settings.layers import Resolved
from kvtier.settings.options import REQUIRED, SECTIONS, Option, SettingsSection

_EXAMPLES: Mapping[str, object] = {
    "ram.capacity": 64 * 2**30,
    "disk.path": "/mnt/nvme/kvtier",
    "disk.capacity": 500 * 2**30,
    "shared.path": "/mnt/kv",
    "objectstore.url": "s3://bucket/kvtier",
}
"""The values of options without a default in the annotated file."""


def render_yaml() -> str:
    """Return a settings file with every option and its default, explained in comments."""
    lines = [
        "# Every option of kvtier with its default. Use it with `kvtier serve --config FILE`,",
        "# or name it in KVTIER_CONFIG. Sizes: 64GiB, 1.5GiB, 20GB. Durations: 250ms, 2s, 5m.",
    ]
    for section in SECTIONS.values():
        lines += ["", *_comment(_summary(section), ""), f"{section.name}:"]
        for option in section.options:
            value = _EXAMPLES[option.name] if option.default is REQUIRED else option.default
            lines += [
                *_comment(_explain(option), "  "),
                f"  {option.field}: {option.format(value)}",
            ]
    return "\n".join(lines) + "\n"


def render_markdown() -> str:
    """Return the reference page of all settings, `docs/reference/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Generated from `kvtier.settings.tree`; do not edit. Settings come from these sources, and",
        "later ones win: defaults, the YAML file (`--config` or `KVTIER_CONFIG`), `KVTIER_`",
        "variables, flags or the engine's `kv_connector_extra_config`. `kvtier config show",
        "--origin` shows the source of each value.",
        "",
        "Write sizes as `64GiB`, `1.5GiB`, `20GB` or a number of bytes, and durations as `250ms`,",
        "`2s`, `5m` or a number of seconds. Unknown keys and variables are errors.",
    ]
    for section in SECTIONS.values():
        lines += ["", f"## {section.name}", "", _summary(section)]
        if section.shorthand:
            off = " `none` switches the tier off." if section.optional else ""
            flag = f"`{section.flag} {section.shorthand}`"
            variable = f"`{section.variable}={section.shorthand}`"
            lines += ["", f"As a flag: {flag}. As a variable: {variable}.{off}"]
        lines += ["", "| setting | default | meaning | variable | flag |", "|---|---|---|---|---|"]
        for option in section.options:
            default = (
                "required" if option.default is REQUIRED else f"`{option.format(option.default)}`"
            )
            cells = (f"`{option.name}`", default, _explain(option))
            names = (f"`{option.variable}`", f"`{option.flag}`")
            lines.append(f"| {' | '.join((*cells, *names))} |")
    lines += [
        "",
        "## The engine's own keys",
        "",
        "vLLM reads these keys from `kv_connector_extra_config`. They are valid there only.",
        "",
        "| key | meaning |",
        "|---|---|",
        *(f"| `{key}` | {meaning} |" for key, meaning in ENGINE_KEYS.items()),
    ]
    return "\n".join(lines) + "\n"


def render_values(resolved: Resolved) -> str:
    """Return the settings in force as YAML."""
    return "".join(f"{line}\n" for line, _ in _value_lines(resolved))


def render_origins(resolved: Resolved) -> str:
    """Return the settings in force as YAML, with the origin of each value as a comment."""
    return "".join(
        f"{line:<40}  # {origin}\n" if origin else f"{line}\n"
        for line, origin in _value_lines(resolved)
    )


def _value_lines(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yield each line of the YAML, and the origin of its value."""
    for section in SECTIONS.values():
        if getattr(resolved.settings, section.name) is None:
            yield f"{section.name}: none", ""
            continue
        yield f"{section.name}:", ""
        for option in section.options:
            found = resolved.values[option.name]
            yield f"  {option.field}: {option.format(found.value)}", found.origin


def _summary(section: SettingsSection) -> str:
    return " ".join((section.struct.__doc__ or "").split())


def _explain(option: Option) -> str:
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    return option.about.text + choices


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
