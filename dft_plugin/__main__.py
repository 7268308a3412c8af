"""`python -m dft_plugin` is `dft`."""

from dft_plugin.cli.app import main

if __name__ == "__main__":
    main()
