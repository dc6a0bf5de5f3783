"""Engines run a vCPU until it needs the VMM; `state` and `exits` are the same for all of them."""
