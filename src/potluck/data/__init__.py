"""Sources of data, who gets which part of them, and the shares that devices hold."""
