"""Work beside reading and writing: in order, on every piece, and its errors reach the caller."""

import threading

import pytest

from megadeberta.data.beside import Beside

LARGE = 300 << 10


def test_pieces_of_every_size_come_in_order() -> None:
    pieces = [bytes([number]) * size for number, size in enumerate([1, LARGE, 2, LARGE, LARGE, LARGE, LARGE, 3])]
    seen, threads = [], set[int]()

    def collect(piece: memoryview) -> None:
        seen.append(bytes(piece))
        threads.add(threading.get_ident())

    work = Beside(collect)
    for piece in pieces:
        work.add(memoryview(piece))
    work.wait()
    assert seen == pieces
    assert len(threads) == 2  # small pieces are not worth a thread


def test_an_error_reaches_the_caller() -> None:
    def fail(piece: memoryview) -> None:
        raise OSError(5, "no more")

    work = Beside(fail)
    work.add(memoryview(bytes(LARGE)))
    with pytest.raises(OSError, match="no more"):
        work.wait()
    work.stop()


def test_few_pieces_wait() -> None:
    may_go = threading.Event()

    def wait(piece: memoryview) -> None:
        may_go.wait(60)

    work = Beside(wait)
    added = []

    def add() -> None:
        for number in range(5):
            work.add(memoryview(bytes(LARGE)))
            added.append(number)

    adding = threading.Thread(target=add)
    adding.start()
    adding.join(0.2)
    assert len(added) <= 2  # one is worked on, one waits
    may_go.set()
    adding.join()
    work.wait()
    assert len(added) == 5
