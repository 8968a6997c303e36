"""python -m aiocodec: the same as `aic`."""

from aiocodec.cli import main

if __name__ == "__main__":
    main()
