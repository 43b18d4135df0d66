"""The explanations of a key space's fields; a new field needs one."""

import pytest

from kvtier.blocks.key import KeySpace
from kvtier.diagnosis.explanations import (
    EXPLANATIONS,
    checkpoint,
    explain,
    remarks,
)
from kvtier.diagnosis.report import Verdict
from kvtier.diagnosis.shapes import Explanation
from kvtier.testing.samples import sample_space

CHANGE, NEVER, FOLLOWS = Verdict.CHANGE, Verdict.NEVER, Verdict.FOLLOWS
DIRECT = {"layout": "LBNHC direct pcp1 dcp1", "weights": "ab cd", "hash_seed": "default"}


def explain_field(field: str, one: dict[str, object], other: dict[str, object]) -> Explanation:
    return explain(field, sample_space(**{**DIRECT, **one}), sample_space(**{**DIRECT, **other}))


def test_every_field_has_an_explanation() -> None:
    assert tuple(EXPLANATIONS) == KeySpace.__struct_fields__


@pytest.mark.parametrize("field", KeySpace.__struct_fields__)
def test_explanations_say_why_and_what_to_change(field: str) -> None:
    one, other = sample_space(), sample_space(model="other", revision="x", weights="x y")
    explained = explain(field, one, other)
    assert explained.why.endswith(".")
    assert explained.change.endswith(".")
    assert explained.why != explained.change


@pytest.mark.parametrize(
    ("field", "one", "other", "verdict", "expected"),
    [
        ("engine", {"engine": "vllm 0.32"}, {"engine": "vllm 0.33"}, CHANGE, "Run one version"),
        ("model", {"model": "/a/m"}, {"model": "/b/m"}, CHANGE, "Start every engine with the same"),
        ("model", {"weights": "ab x"}, {"weights": "ef x"}, NEVER, "different models"),
        ("revision", {"revision": "unresolved"}, {}, CHANGE, "HF_HOME"),
        ("revision", {"revision": "a"}, {"revision": "b"}, CHANGE, "The weights are the same"),
        ("revision", {"weights": "ab x"}, {"weights": "ef x"}, NEVER, "another checkpoint"),
        ("weights", {"weights": "ab x"}, {"weights": "ef x"}, NEVER, "weight files differ"),
        ("weights", {"weights": "ab x"}, {"weights": "dummy x"}, NEVER, "--load-format dummy"),
        ("weights", {"weights": "ab x"}, {"weights": "ab y"}, CHANGE, "--quantization"),
        ("weights", {"weights": "ab x"}, {"weights": "unknown x"}, CHANGE, "could not determine"),
        ("weights", {"weights": "ab x"}, {"weights": "ab unknown"}, CHANGE, "could not determine"),
        ("dtype", {"dtype": "bfloat16"}, {"dtype": "fp8"}, NEVER, "Blocks of bfloat16 and fp8"),
        ("hash_algorithm", {"hash_algorithm": "xxhash"}, {}, CHANGE, "xxhash and sha256"),
        ("hash_algorithm", {"hash_algorithm": "unknown"}, {}, CHANGE, "could not determine"),
        ("hash_seed", {"hash_seed": "random 1"}, {}, CHANGE, "Set PYTHONHASHSEED to the"),
        ("hash_seed", {"hash_seed": "random 1"}, {}, CHANGE, "draws a random one"),
        (
            "hash_seed",
            {"hash_seed": "PYTHONHASHSEED=0"},
            {},
            CHANGE,
            "or to none if they use sha256",
        ),
        ("hash_seed", {"hash_algorithm": "x"}, {}, FOLLOWS, "from hash_algorithm."),
        ("isa", {"isa": "cpu x86_64 avx2"}, {"isa": "cpu x86_64 amx"}, NEVER, "instruction set"),
        ("isa", {"isa": "cuda 8.0"}, {"isa": "cuda 9.0"}, NEVER, "of different capabilities"),
        ("isa", {"isa": "cuda 8.0"}, {"isa": "cpu x86_64 amx"}, NEVER, "Each platform"),
    ],
)
def test_explanation_fits_the_case(
    field: str, one: dict[str, object], other: dict[str, object], verdict: Verdict, expected: str
) -> None:
    explained = explain_field(field, one, other)
    assert explained.verdict is verdict
    assert expected in f"{explained.why} {explained.change}"


def test_remarks_on_random_seed_and_unknown_values() -> None:
    assert remarks(sample_space(**DIRECT)) == []
    (random,) = remarks(sample_space(hash_seed="random 0123"))
    assert "Set PYTHONHASHSEED to the same value on all replicas" in random
    (unknown,) = remarks(
        sample_space(hash_algorithm="unknown", layout="unknown direct", weights="ab unknown")
    )
    assert unknown.startswith("hash_algorithm, layout, weights: ")
    assert "kvtier serve" in unknown


@pytest.mark.parametrize(
    ("weights", "digest"),
    [("ab cd", "ab"), ("ab", "ab"), ("unknown cd", None), ("dummy cd", None), ("", None)],
)
def test_checkpoint_is_the_digest_of_the_weight_files(weights: str, digest: str | None) -> None:
    assert checkpoint(sample_space(weights=weights)) == digest
