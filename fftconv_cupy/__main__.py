"""Run the command line: ``python -m fftconv_cupy`` is ``fftconv``."""

from fftconv_cupy.cli import main

if __name__ == "__main__":
    main(prog_name="fftconv")
