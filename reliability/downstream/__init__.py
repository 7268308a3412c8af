"""What a host does where dft-plugin is installed and not asked for, and the trainer tests of others under `nll`."""
