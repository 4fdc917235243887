"""Entry point of the ``coreset`` script, and of ``python -m coreset``."""

from coreset.engine.runtime.signals import end_on_interrupt

end_on_interrupt()  # before the next import, which takes most of a tenth of a second

from coreset.engine.cli import run  # noqa: E402 - after the handler

if __name__ == "__main__":
    run()
