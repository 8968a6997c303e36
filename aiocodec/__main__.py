"""`aic`, and `python -m aiocodec`. The handlers of signals are set before anything else is imported:
whenever Ctrl-C comes, there is no traceback."""

from aiocodec import signals

signals.install()


def main() -> None:
    """Run `aic` and exit."""
    try:
        from aiocodec.cli.main import main

        main()
    except signals.Stopped as stopped:  # before the command had begun or after it had ended
        signals.leave(stopped.code, say=True)
    finally:
        signals.ignore()


if __name__ == "__main__":
    main()
