"""Reading what a user wrote: settings, plugins, hosts. No torch."""
