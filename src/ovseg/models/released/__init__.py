"""Everything that knows the released OVSeg: key names, architecture, settings, import."""
