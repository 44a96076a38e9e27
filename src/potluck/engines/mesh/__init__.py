"""Peers without a server, on zenoh: their links, and the mesh itself."""
