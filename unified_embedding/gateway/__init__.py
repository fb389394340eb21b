"""The gateway before the servers: Envoy, its configuration and the files that it follows."""
