"""`python -m pyvmm`."""

try:
    from pyvmm.cli.main import entry
except KeyboardInterrupt:  # Ctrl-C this early: all that can be done is to go quietly
    raise SystemExit(130) from None

if __name__ == "__main__":
    entry()
