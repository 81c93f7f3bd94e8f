"""Pages and vector graphics made up, and rendered in a sandbox."""
