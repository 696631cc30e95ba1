"""Reading in several processes. They import this file, so it is kept free of torch, which takes seconds to import."""

from backshan_diffusers.data import Pairs
from backshan_diffusers.data.arrays import CHUNK, read_chunks


class Counted:
    """A source that counts how often it is sent."""

    size, key, capacity, sent = 16, "counted", 5 * CHUNK, 0

    def __getstate__(self):
        Counted.sent += 1
        return {}

    def row(self, index):
        return index


def test_every_process_gets_the_rows_once():
    rows = Pairs(Counted(), range(Counted.capacity))
    chunks = list(read_chunks(list, rows, 2, "rows"))
    assert [index for chunk in chunks for index in chunk] == list(range(Counted.capacity))
    assert Counted.sent == 2
