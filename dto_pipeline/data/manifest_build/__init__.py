"""Everything that makes manifests: built from label files, merged with predictions, checked against their images."""
