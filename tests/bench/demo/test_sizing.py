import pytest

from kvtier_bench.demo.sizing import (
    SHAPES,
    Shape,
    Sizes,
    Speed,
    choose_sizes,
    costs,
    first_shape,
    warm_up_s,
)


def speed(factor: float = 1.0) -> Speed:
    """Two cores with AVX-512, and machines that are slower by a factor."""
    return Speed(linear_s=0.00033 / factor, square_s=0.33e-6 / factor, decode_s=0.06 / factor)


def choose(factor: float, left_s: float, start_s: float, running: Shape = SHAPES[0]) -> Sizes:
    return choose_sizes(speed(factor), left_s, start_s=start_s, running=running)


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_overflows_device_cache_and_fits_requests_in_flight(shape: Shape) -> None:
    workload = shape.workload(questions=3, output_len=24)
    whole = shape.prefix_len + shape.question_len + 24
    assert workload.device_blocks == shape.device_blocks
    assert workload.working_set_ratio >= 1.4
    assert (shape.device_blocks - 1) * 128 >= workload.concurrency * whole
    assert shape.longest_prompt + shape.question_len + 24 <= (shape.device_blocks - 1) * 128


def test_speed_from_one_prompt_assumes_quadratic_growth() -> None:
    measured = Speed.measured(512, 0.5, 0.05)
    assert measured.prefill_s(512) == pytest.approx(0.5)
    assert measured.prefill_s(1024) > 2 * 0.5
    assert measured.decode_s == 0.05


def test_refined_speed_passes_through_both_prompts() -> None:
    refined = Speed.measured(512, 0.3, 0.05).refined(512, 4096, 6.0)
    assert refined.prefill_s(512) == pytest.approx(0.3)
    assert refined.prefill_s(4096) == pytest.approx(6.0)


def test_refined_speed_ignores_probe_that_was_too_slow() -> None:
    refined = Speed.measured(512, 5.0, 0.05).refined(512, 4096, 8.0)
    assert refined.prefill_s(4096) == pytest.approx(8.0)
    assert refined.prefill_s(512) == pytest.approx(1.0)


def test_refined_speed_ignores_probe_that_was_too_fast() -> None:
    refined = Speed.measured(512, 0.01, 0.05).refined(512, 1024, 4.0)
    assert refined.prefill_s(1024) == pytest.approx(4.0)
    assert 0 < refined.prefill_s(512) < 4.0


def test_refined_speed_needs_longer_prompt() -> None:
    measured = Speed.measured(512, 0.5, 0.05)
    assert measured.refined(512, 512, 9.0) == measured


def test_fast_machine_gets_long_prompts_and_large_load() -> None:
    sizes = choose(1.0, left_s=200, start_s=8)
    assert sizes.shape == SHAPES[0]
    assert sizes.prompt_len >= 4096
    assert sizes.workload is not None
    assert sizes.workload.prompts_per_group >= 3
    assert sizes.checks >= 1


def test_slow_machine_gets_short_prompts() -> None:
    sizes = choose(0.1, left_s=170, start_s=12, running=SHAPES[2])
    assert 256 <= sizes.prompt_len <= 1536
    assert sizes.prompt.system_prompt_len == sizes.prompt_len


def test_absurdly_slow_machine_gets_one_short_prompt_with_short_answers() -> None:
    sizes = choose(0.003, left_s=60, start_s=40, running=SHAPES[2])
    assert (sizes.workload, sizes.prompt_len, sizes.output_len) == (None, 128, 3)
    assert warm_up_s(sizes, speed(0.003)) == 0


@pytest.mark.parametrize("factor", [4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
@pytest.mark.parametrize("left_s", [120, 160, 200])
@pytest.mark.parametrize("running", SHAPES)
def test_chosen_sizes_fit_with_their_server_starts(
    factor: float, left_s: float, running: Shape
) -> None:
    sizes = choose(factor, left_s, start_s=8, running=running)
    starts = 3 if sizes.shape == running else 4
    assert costs(sizes, speed(factor)).total + starts * 8 <= left_s


def test_prompt_already_met_keeps_its_length() -> None:
    sizes = choose_sizes(
        speed(0.5),
        150,
        start_s=10,
        running=SHAPES[1],
        shapes=(SHAPES[1],),
        prompt_len=3072,
    )
    assert (sizes.prompt_len, sizes.shape) == (3072, SHAPES[1])


def test_load_with_cache_is_expected_to_take_less_than_without() -> None:
    sizes = choose(1.0, left_s=200, start_s=8)
    expected = costs(sizes, speed())
    assert 0 < expected.tiers_load < expected.alone_load


def test_cpu_without_native_bfloat16_starts_with_smaller_shape() -> None:
    assert first_shape("float32").device_blocks < first_shape("auto").device_blocks
