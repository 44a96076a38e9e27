"""Data: sources, data sets as they are read, who gets which part, and the shares that devices hold."""
