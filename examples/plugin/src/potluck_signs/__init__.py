"""Things of one's own for Potluck: a method, a net, a source, a codec and a tracker."""
