"""The round loop, and the engines that carry its frames to devices and back.

What both sides share lies here: the contract, what a run is and what a round comes to, the rounds themselves, the
device's part. Each engine is a folder: local (this process, or a pool), flower, mesh; security holds certificates.
"""
