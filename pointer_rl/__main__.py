"""`python -m pointer_rl` is the same as `pointer-rl`."""

from pointer_rl.cli.main import main

if __name__ == "__main__":
    main()
