"""Which blocks of a corpus one of several machines takes."""


class WorkDivision:
    """Gives every block to the part with the fewest bytes so far, of equals to the first; all machines agree on it."""

    def __init__(self, part: int = 1, of: int = 1) -> None:
        """This machine is number ``part`` of 1 to ``of``."""
        self._mine = part - 1
        self._bytes = [0] * of

    def takes(self, size: int) -> bool:
        """Whether the next block, of about ``size`` bytes of text, is this machine's. Asked once for every block."""
        least = self._bytes.index(min(self._bytes))
        self._bytes[least] += size
        return least == self._mine
