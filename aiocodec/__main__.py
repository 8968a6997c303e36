"""python -m aiocodec: the same as `aic`."""

from aiocodec.cli.main import main

if __name__ == "__main__":
    main()
