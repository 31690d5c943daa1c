"""The released OVSeg: its files, read into networks of ours."""
