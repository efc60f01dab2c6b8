"""The OCI runtime specification: bundles, their checks, state, hooks and features. Knows nothing of VMs."""
