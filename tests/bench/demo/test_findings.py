import msgspec
import pytest

from kvtier_bench.demo.findings import Findings, Met, agreement_rows, findings_rows

TEXTS = {"prompt": "a", "1/0": "b"}


@pytest.fixture
def findings() -> Findings:
    return Findings(
        prompt_tokens=4000,
        met={
            "cold": Met(ttft_s=6.0, served_share=0.0),
            "ram": Met(ttft_s=0.3, served_share=0.99),
        },
        texts={"device": TEXTS, "ram": TEXTS, "disk": TEXTS, "shared": {"prompt": "a"}},
        load_texts={"alone": TEXTS, "tiers": TEXTS},
    )


def verdicts(findings: Findings) -> list[bool | None]:
    return [row.met for row in agreement_rows(findings)]


def test_equal_answers_agree(findings: Findings) -> None:
    assert verdicts(findings) == [True, True, True, None]


@pytest.mark.parametrize(("number", "tier"), [(0, "ram"), (1, "disk"), (2, "shared")])
def test_tier_that_changes_an_answer_fails(findings: Findings, number: int, tier: str) -> None:
    findings.texts[tier] = {"prompt": "garbage"}
    assert verdicts(findings).index(False) == number


def test_answers_against_vllm_alone_are_only_counted(findings: Findings) -> None:
    findings.load_texts["alone"] = {**TEXTS, "1/0": "c"}
    counted = agreement_rows(findings)[-1]
    assert (counted.value, counted.met) == (1, None)


def test_phases_left_out_have_no_rows() -> None:
    assert findings_rows(Findings()) == []
    only_ram = Findings(texts={"device": TEXTS, "ram": TEXTS})
    assert verdicts(only_ram) == [True]


def test_times_are_compared_with_the_computed_prompt(findings: Findings) -> None:
    rows = {row.name: row for row in findings_rows(findings)}
    assert rows["demo/ttft/cold"].ratio is None
    assert rows["demo/ttft/ram"].ratio == pytest.approx(0.05)
    assert "99% of 4000 tokens" in rows["demo/ttft/ram"].note


def test_findings_are_written_as_json(findings: Findings) -> None:
    assert msgspec.json.decode(msgspec.json.encode(findings))["prompt_tokens"] == 4000
