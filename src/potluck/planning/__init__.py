"""What a run will cost, and what a device can afford: dry rounds, totals, settings that fit, and the probe."""
