"""What takes too long or too much is given up, and other timers go on."""

from __future__ import annotations

import re
import signal
import sys
import threading

import pytest

from duiqi.guards.limits import at_most, within_memory


def test_a_loop_and_a_pattern_without_end_are_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 seconds"), at_most(0.05):
        all(True for _ in iter(int, 1))
    with pytest.raises(TimeoutError), at_most(0.05):
        re.match("(a+)+$", "a" * 64 + "b")


def test_what_ends_in_time_is_left_alone_and_so_is_an_alarm_of_somebody_else() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: rang.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 60.0)
        with at_most(1.0):
            pass
        assert 50.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60.0
        signal.raise_signal(signal.SIGALRM)
        assert rang == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_beside_the_main_thread_there_is_no_alarm() -> None:
    done: list[bool] = []

    def work() -> None:
        with at_most(0.01):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep a process to a limit")
def test_what_asks_for_too_much_is_given_up_and_afterwards_there_is_room_again() -> None:
    with pytest.raises(MemoryError), within_memory(2**26):
        bytearray(2**28)
    with within_memory(2**28):
        assert len(bytearray(2**26)) == 2**26
    assert len(bytearray(2**28)) == 2**28
