"""Tables of `dss records`."""
