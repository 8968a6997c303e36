"""Fuzz target: reading an image file of any format, and writing what was read."""

from contextlib import suppress

from driver import CORPUS, drive, instrumented

with instrumented():
    import numpy as np

    from aiocodec.errors import AicError
    from aiocodec.image import read, write

MAX_PIXELS = 1 << 21


def read_and_write(data):
    with suppress(AicError):
        picture = read(data, max_pixels=MAX_PIXELS)
        height, width, channels = picture.rgb.shape
        assert channels == 3 and 0 < height * width <= MAX_PIXELS
        assert picture.rgb.dtype == np.uint8 and picture.rgb.flags.c_contiguous
        if picture.alpha is not None:
            assert picture.alpha.shape == (height, width) and picture.alpha.dtype == np.uint8
        if height * width <= 1 << 14:
            again = read(write(picture))
            assert np.array_equal(again.rgb, picture.rgb)
            assert (again.alpha is None) == (picture.alpha is None)


if __name__ == "__main__":
    drive(read_and_write, CORPUS / "read")
