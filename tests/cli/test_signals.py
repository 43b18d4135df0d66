import signal

import pytest

from kvtier.cli.signals import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_ends(number: int) -> None:
    before, asked = signal.getsignal(number), []
    with stopping(lambda: asked.append(number)):
        signal.raise_signal(number)
        assert asked == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
