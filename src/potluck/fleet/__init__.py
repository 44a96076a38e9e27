"""Who is in the fleet, who takes part in a round, and how long bytes and work take."""
