"""A finished bundle verified again on a device."""
