"""The first signal is a wish, whichever it is; the second leaves at once."""

from __future__ import annotations

import signal
import threading

import pytest

from duiqi.training.interruption import SIGNALS, listening


def test_terminals_and_clusters_are_listened_to() -> None:
    assert SIGNALS == (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_signal_is_remembered_and_the_second_acts_as_ever(first: signal.Signals) -> None:
    with listening() as request:
        assert not request
        signal.raise_signal(first)
        assert request.signal_name == first.name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_everything_is_as_before() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with listening():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_beside_the_main_thread_nobody_listens() -> None:
    heard: list[bool] = []

    def work() -> None:
        with listening() as request:
            heard.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]
