"""Who is who: certificates and keys."""
