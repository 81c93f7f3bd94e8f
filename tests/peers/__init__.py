"""Parity with PyTorch; a package, since its files share names with others."""
