from __future__ import annotations

import os
import signal
import threading

import pytest

from ccaco_cli.core import interrupts
from ccaco_cli.core.errors import Interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_second_ends(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, interrupts.catch_stop_signals() as stop_signal:
        assert stop_signal.signal == 0
        os.kill(os.getpid(), number)
        assert stop_signal.signal == number
        os.kill(os.getpid(), number)
    assert caught.value.code == interrupts.interrupted(number, "").code == code
    assert signal.getsignal(number) == before


def test_sigterm_raises_so_that_temporary_files_are_cleared() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught, interrupts.raise_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(caught.value, Interrupted) and caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_do_not_listen() -> None:
    signals = []

    def work() -> None:
        with interrupts.catch_stop_signals() as stop_signal, interrupts.raise_on_sigterm():
            signals.append(stop_signal.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signals == [0]
