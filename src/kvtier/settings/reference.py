"""The settings tree as text: the annotated YAML of every option, the reference, `config show`.

Why it exists: documentation that is written by hand goes stale; this is derived from `options`.
What `render_yaml` and `render_values` write is valid input for `layers.load`.
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
"""What stands in the annotated file for options that have no default."""


def render_yaml() -> str:
    """Every option with its default, explained in comments."""
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
    """The reference page."""
    lines = [
        "# Settings",
        "",
        "Generated from `kvtier.settings.tree`; do not edit. Later sources win: defaults, the YAML",
        "file (`--config` or `KVTIER_CONFIG`), `KVTIER_` variables, flags or the engine's",
        "`kv_connector_extra_config`. `kvtier config show --origin` tells who won.",
        "",
        "Sizes are written `64GiB`, `1.5GiB`, `20GB` or in bytes; durations `250ms`, `2s`, `5m` or",
        "in seconds. An unknown key or variable is an error.",
    ]
    for section in SECTIONS.values():
        lines += ["", f"## {section.name}", "", _summary(section)]
        if section.shorthand:
            off = " `none` switches it off." if section.optional else ""
            flag = f"`{section.flag} {section.shorthand}`"
            lines += ["", f"Also {flag} or `{section.variable}={section.shorthand}`.{off}"]
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
        "vLLM reads these from `kv_connector_extra_config`; they have no place elsewhere.",
        "",
        "| key | meaning |",
        "|---|---|",
        *(f"| `{key}` | {meaning} |" for key, meaning in ENGINE_KEYS.items()),
    ]
    return "\n".join(lines) + "\n"


def render_values(resolved: Resolved) -> str:
    """The settings in force as YAML."""
    return "".join(f"{line}\n" for line, _ in _value_lines(resolved))


def render_origins(resolved: Resolved) -> str:
    """As `render_values`, with where each value came from as a comment."""
    return "".join(
        f"{line:<40}  # {origin}\n" if origin else f"{line}\n"
        for line, origin in _value_lines(resolved)
    )


def _value_lines(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Each line of the YAML and the origin of its value."""
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
